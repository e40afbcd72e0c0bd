"""How commands and the clusters of one call end: by signals, in whatever they are, and by outputs that are gone."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command_line import Cli, Process, Result, finish, gone, kill, read_some, until

PROMPT = "once upon a time"
LONG = "once upon a time " * 100
CODES = {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM, signal.SIGHUP: -signal.SIGHUP}
FULL = "error: stdout: no space is left there; free some, or choose another place\n"
STOP_S = 3.0  # limits.stop_s
END_S = STOP_S + 7.0  # the promise is 4 s; this machine may be busy


def signalled(process: Process, number: signal.Signals = signal.SIGINT) -> Result:
    """How a command ends that gets a signal now."""
    start = time.monotonic()
    process.send_signal(number)
    return finish(process, END_S, start)


def runs(cli: Cli) -> bool:
    """Whether the root can be asked."""
    return (cli.home / "run" / "small" / "cluster.json").exists()


def nothing_is_left(cli: Cli) -> None:
    until(lambda: not cli.processes(), END_S, "every process to end")
    assert cli.sockets() == []


# --- the cluster of one call --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("appears", ["lock", "clients.sock", "cluster.json"])
def test_a_call_that_is_stopped_while_its_cluster_starts_leaves_nothing(
    cli: Cli, appears: str, number: signal.Signals
) -> None:
    cli.write(2)
    with cli.started("generate", PROMPT) as process:
        until((cli.home / "run" / "small" / appears).exists, 20, appears)
        ended = signalled(process, number)
    assert ended.code == CODES[number], ended.said
    assert "Traceback" not in ended.err
    nothing_is_left(cli)


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_call_that_is_stopped_in_mid_answer_leaves_nothing(cli: Cli, number: signal.Signals) -> None:
    cli.write(2)
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 20)
        ended = signalled(process, number)
    assert ended.code == CODES[number], ended.said
    assert "error" not in ended.err
    nothing_is_left(cli)


def test_a_call_that_is_stopped_in_a_prompt_on_slow_kernels_leaves_nothing(cli: Cli) -> None:
    cli.write(2, kernels="numpy")
    with cli.started("generate", LONG) as process:
        until(lambda: runs(cli) and cli.status().active == 1, 30, "the prompt's turn")
        ended = signalled(process)
    assert ended.code == 130, ended.said
    nothing_is_left(cli)


def test_a_call_is_stopped_though_its_root_and_worker_answer_nobody(cli: Cli) -> None:
    """Frozen processes stand for a step of a minute: they see no signal but SIGKILL."""
    cli.write(2)
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 20)
        pids = [cli.pid("root"), cli.pid("worker1")]
        for pid in reversed(pids):
            kill(pid, signal.SIGSTOP)
        ended = signalled(process)
    assert ended.code == 130, ended.said
    assert all(gone(pid) for pid in pids)
    nothing_is_left(cli)


def test_a_call_that_is_stopped_while_kernels_are_compiled_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    cli.write(2)
    with cli.started("generate", PROMPT, XDG_CACHE_HOME=str(tmp_path / "empty")) as process:
        await_words(process, "compiling")
        ended = signalled(process)
    assert ended.code == 130, ended.said
    assert "Traceback" not in ended.err
    nothing_is_left(cli)


def test_a_second_signal_does_not_keep_the_first_from_ending_all(cli: Cli) -> None:
    cli.write(2)
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 20)
        process.send_signal(signal.SIGINT)
        ended = signalled(process)
    assert ended.code == 130, ended.said
    until(lambda: not cli.processes() and not cli.sockets(), END_S, "the cluster to end")


def test_who_uses_the_cluster_of_another_call_keeps_it_when_that_is_stopped(cli: Cli) -> None:
    cli.write(2, kernels="numpy")  # so that the first answer lasts until the second is asked for
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as owner:
        read_some(owner, len(PROMPT) + 20)
        with cli.started("generate", PROMPT, "--temp", "0", "-n", "100") as other:
            until(lambda: cli.status().active == 2, 20, "the second request")
            stopped = signalled(owner)
            assert stopped.code == 130, stopped.said
            assert "small stays up until the other commands that use it end" in stopped.err
            answered = finish(other, 30, time.monotonic())
    assert answered.code == 0, answered.said
    assert len(answered.out) > len(PROMPT) + 50
    until(lambda: not cli.processes() and not cli.sockets(), END_S, "the cluster to end after its last user")


# --- up and down --------------------------------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_up_that_is_stopped_leaves_nothing(cli: Cli, number: signal.Signals) -> None:
    cli.write(2)
    with cli.started("up") as process:
        until((cli.home / "run" / "small" / "clients.sock").exists, 20, "the root")
        process.send_signal(number)
        process.wait(END_S)
    until(lambda: not cli.processes() and not cli.sockets(), END_S, "the root to end with its `up`")


def test_down_ends_a_cluster_that_is_starting(cli: Cli) -> None:
    cli.write(2, workers=[{"name": "far", "host": "192.0.2.1"}], host="0.0.0.0", security="none")
    with cli.started("up") as process:
        until(lambda: (cli.home / "run" / "small" / "cluster.json").exists(), 20, "the root")
        assert "is down" in cli.down().err
        process.wait(END_S)
    nothing_is_left(cli)


def test_down_ends_a_cluster_whose_processes_are_frozen(cli: Cli) -> None:
    cli.up(2)
    for pid in (cli.pid("worker1"), cli.pid("root")):
        kill(pid, signal.SIGSTOP)
    down = cli.down()
    assert "is down" in down.err
    assert down.seconds < 3 * STOP_S
    nothing_is_left(cli)


def test_a_cluster_that_is_asked_to_stop_has_ended_when_down_says_so(cli: Cli) -> None:
    cli.up(2)
    kill(cli.pid("worker1"), signal.SIGSTOP)  # so that the root takes a while to end
    address = f"127.0.0.1:{cli.ports['clients']}"
    down = cli.run("down", "--connect", address)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", cli.ports["clients"]), 5.0).close()
    assert f"the cluster at tcp://{address} is down, in " in down.err


def test_clients_hear_why_a_cluster_ends_that_cannot_start(cli: Cli) -> None:
    cli.write(2)
    with cli.started("up", "--foreground") as process:

        def has_given_up() -> bool:
            signal_worker(cli, signal.SIGKILL)
            return process.poll() is not None

        until(lambda: signal_worker(cli, signal.SIGSTOP), 20, "the worker, which must not become ready")
        until(lambda: runs(cli), 20, "the root")
        with cli.started("generate", PROMPT) as call:
            until(lambda: cli.status().queued == 1, 20, "the request")
            until(has_given_up, 30, "the cluster to give up")
            results = finish(call, END_S, time.monotonic())
        ended = finish(process, END_S, time.monotonic())
    assert "worker1 ended 3 times" in ended.error()
    assert results.error().startswith("the cluster went down: worker1 ended 3 times before the cluster was ready")


def signal_worker(cli: Cli, number: signal.Signals) -> bool:
    """Whether there was one to send it to."""
    found = False
    for process in cli.processes_of("worker1"):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            found = True
    return found


# --- workers that die or freeze -----------------------------------------------------------------------------------


def test_a_frozen_worker_is_ended_and_started_again(cli: Cli) -> None:
    cli.up(2)
    frozen = cli.pid("worker1")
    kill(frozen, signal.SIGSTOP)
    took_s = until(lambda: cli.pid("worker1") not in (0, frozen) and cli.status().state == "ready", 40, "a new worker1")
    assert gone(frozen)
    assert "killing worker1: it is stopped and has not joined for 5 s" in (cli.log_folder / "root.log").read_text()
    print(f"a frozen worker was replaced after {took_s:.1f} s")
    cli.down()


def test_a_worker_that_dies_again_and_again_does_not_end_a_cluster_that_was_ready(cli: Cli) -> None:
    cli.up(2)
    for _ in range(4):
        kill(cli.pid("worker1"))
        until(lambda: cli.status().state == "forming", 20, "the root to miss worker1")
        until(lambda: cli.status().state == "ready", 40, "worker1 to be back")
    assert cli.generate("-n", "5").code == 0
    cli.down()


def test_a_waiting_client_hears_that_a_worker_dies_again_and_again(cli: Cli) -> None:
    cli.up(2)
    reasons: set[str] = set()

    def named() -> bool:
        signal_worker(cli, signal.SIGKILL)
        reasons.update(node.reason for node in cli.status().nodes)
        return any("ended 3 times in a row, last with signal 9, and starts again in" in reason for reason in reasons)

    until(named, 30, f"a reason, of {reasons}")
    until(lambda: cli.status().state == "ready", 30, "worker1 to be back")
    cli.down()


# --- what becomes of the output -----------------------------------------------------------------------------------


def shell(cli: Cli, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash with `dllama` for the command; the exit code is the command's, not its reader's."""
    command = f'dllama() {{ {shlex.quote(sys.executable)} -m dllama_zmq "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", command], cwd=cli.folder, env=cli.environment(**env), capture_output=True, text=True, timeout=60
    )


def test_commands_whose_reader_has_gone_end_quietly(running: Cli) -> None:
    words = ["status", "--help", "up --help", f"inspect {running.model}", "status --json", "logs", "generate hi -n 5"]
    for command in words:
        done = shell(running, f"dllama {command} | true; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (0, ""), command


def test_a_full_disk_for_the_answer_is_one_sentence(running: Cli) -> None:
    for command in ("generate hi -n 5", "generate hi -n 5 --json", "status", "status --json", "logs"):
        done = shell(running, f"dllama {command} >/dev/full")
        assert (done.returncode, done.stderr) == (1, FULL), command


def test_streams_that_are_closed_are_no_defect(running: Cli) -> None:
    for streams in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        done = shell(running, f"dllama generate hi -n 5 --temp 0 {streams}")
        assert (done.returncode, done.stderr) == (0, ""), streams


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_no_place_is_not_used(cli: Cli, home: str) -> None:
    cli.write(1)
    done = shell(cli, "dllama status; cd ..; echo *", HOME=home, DLLAMA_ZMQ_HOME="", XDG_STATE_HOME="")
    assert "'small' is not running" in done.stderr
    assert not (cli.folder / "relative").exists()
    assert not Path("/.local").exists()


@pytest.mark.parametrize("name", ["dé l.m", os.fsdecode(b"d\xe9.m")], ids=["UTF-8", "latin-1"])
def test_a_model_of_any_name_runs_in_any_locale_and_json_is_json(cli: Cli, name: str) -> None:
    for path in (cli.model, cli.model.with_suffix(".t")):
        shutil.copy(path, (cli.folder / name).with_suffix(path.suffix))
    (cli.folder / "cluster.yaml").write_text("model: ../none.m")
    results = {}
    for locale in ("C", "C.UTF-8"):
        words = ["generate", "hé", "-m", name, "-n", "3", "--temp", "0", "--json"]
        done = cli.run(*words, LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        assert done.code == 0, done.said
        results[locale] = json.loads(done.out)
        assert results[locale]["prompt"] == "hé"
    assert results["C"]["model"] == results["C.UTF-8"]["model"]
    assert results["C"]["tokens"] == results["C.UTF-8"]["tokens"]


def await_words(process: Process, words: str, wait_s: float = 30.0) -> None:
    """Read stderr until it says `words`."""
    assert process.stderr is not None
    said, deadline = b"", time.monotonic() + wait_s
    while words.encode() not in said:
        ready, _, _ = select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"only {said!r} within {wait_s} s"
        piece = process.stderr.read1(65536)  # type: ignore[attr-defined]
        assert piece, f"the output ended after {said!r}"
        said += piece
