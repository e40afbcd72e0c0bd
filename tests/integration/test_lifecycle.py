"""A cluster's life as its user sees it: up, status, generate, down, and what happens when a process dies."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from command_line import Cli, finish, gone, json_object, kill, until
from integration.answers import LEAVE_S, NOTICE_S, PROMPT, answer, long_answer

SOAK = Path(__file__).parents[2] / "tools" / "soak.py"


# --- up, status, down ---------------------------------------------------------------------------------------------


@pytest.mark.few(2)
@pytest.mark.parametrize("n_nodes", [1, 2, 4])
def test_a_cluster_comes_up_reports_its_state_answers_and_goes_down(cli: Cli, n_nodes: int, greedy_text: str) -> None:
    cli.write(n_nodes)
    up = cli.run("up")
    assert (up.code, up.out) == (0, ""), up.said
    assert f"small is up: {n_nodes} node{'s' if n_nodes > 1 else ''} in " in up.err.splitlines()[-1]
    nodes = ["root", *(f"worker{i}" for i in range(1, n_nodes))]

    text = cli.run("status")
    assert (text.code, text.err) == (0, "")
    assert text.out.startswith("small: ready, ")
    assert [line.split()[:2] for line in text.out.splitlines()[-n_nodes:]] == [[node, "ready"] for node in nodes]

    data = json_object(cli.run("status", "--json").out)
    assert (data["name"], data["state"], data["active"], data["queued"]) == ("small", "ready", 0, 0)
    assert [node["name"] for node in data["nodes"]] == nodes
    assert all(node["weight_bytes"] > 0 and node["pid"] > 0 for node in data["nodes"])

    assert cli.generate("-n", "40").out == f"{PROMPT}{greedy_text}\n"
    down = cli.run("down")
    assert (down.code, down.out, "small is down" in down.err) == (0, "", True), down.said
    assert cli.processes() == []
    assert cli.sockets() == []
    print(f"nodes={n_nodes} up_s={up.seconds:.2f} down_s={down.seconds:.2f}")


def test_nodes_are_of_this_installation_whatever_the_current_folder_holds(cli: Cli) -> None:
    cli.write(2)
    other = cli.folder / "dllama_zmq"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('this is another checkout')\n")
    command = [Path(sys.executable).parent / "dllama-zmq"]  # `python -m` would take the other one itself
    for words, says in ((["up"], "small is up: 2 nodes"), (["down"], "small is down")):
        done = subprocess.run(
            [*command, *words], cwd=cli.folder, env=cli.environment(), capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, says in done.stderr) == (0, True), done.stderr


def test_a_second_up_says_that_the_cluster_runs_and_leaves_it_running(cli: Cli, greedy_text: str) -> None:
    cli.up(2)
    pid = cli.status().pid
    assert cli.run_here("up").error() == "cluster 'small' is running already; `dllama-zmq down` stops it"
    assert cli.run("up", "--foreground").error() == "cluster 'small' is running already; `dllama-zmq down` stops it"
    assert cli.status().pid == pid
    assert answer(cli) == greedy_text
    cli.down()


def test_up_status_and_down_take_the_file_with_a_flag_as_others_do(cli: Cli) -> None:
    cli.write(1).rename(cli.folder / "other.yaml")
    assert cli.run("up", "--cluster", "other.yaml").code == 0
    running = cli.run_here("up", "other.yaml").error()
    assert running == "cluster 'small' is running already; `dllama-zmq down --cluster other.yaml` stops it"
    for command in ("status", "down"):
        result = cli.run(command, "--cluster", "other.yaml")
        assert result.code == 0, result.said
    sentence = cli.run_here("status", "other.yaml", "--cluster", "other.yaml").error()
    assert sentence == "cluster 'small' is not running; `dllama-zmq up --cluster other.yaml` starts it"
    for command in ("up", "down", "status"):
        twice = cli.run_here(command, "other.yaml", "--cluster", "third.yaml").error(2)
        assert twice == "two clusters are given, other.yaml and --cluster third.yaml; give one"


def test_down_and_status_say_where_no_cluster_runs(cli: Cli) -> None:
    cli.up(1)
    cli.down()
    assert cli.down().err == "small was not running\n"
    assert cli.run_here("status").error() == "cluster 'small' is not running; `dllama-zmq up` starts it"
    status = cli.run("status", "--json")
    assert (status.code, status.out) == (1, '{"state":"down"}\n')


# --- in the foreground --------------------------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_cluster_in_the_foreground_ends_well_on_a_signal(cli: Cli, number: signal.Signals, greedy_text: str) -> None:
    cli.write(2)
    with cli.started("up", "--foreground") as process:
        await_ready(cli)
        assert answer(cli) == greedy_text
        start = time.monotonic()
        process.send_signal(number)
        ended = finish(process, LEAVE_S, start)
    assert (ended.code, ended.out) == (0, ""), ended.said
    assert "Traceback" not in ended.err
    assert cli.processes() == []
    assert cli.sockets() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_cluster_that_was_started_with_a_signal_ignored_ignores_it(
    cli: Cli, number: signal.Signals, greedy_text: str
) -> None:
    """As nohup does with SIGHUP, and a script's `&` with SIGINT."""
    cli.write(2)
    with ignored(number), cli.started("up", "--foreground") as process:
        await_ready(cli)
        process.send_signal(number)
        assert answer(cli) == greedy_text
        start = time.monotonic()
        process.terminate()
        ended = finish(process, LEAVE_S, start)
    assert (ended.code, ended.out) == (0, ""), ended.said


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Processes that are started in this block ignore the signal."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.few(1)
@pytest.mark.parametrize("appears", ["lock", "clients.sock", "cluster.json"])
def test_a_cluster_that_is_stopped_while_it_starts_leaves_nothing(cli: Cli, appears: str) -> None:
    cli.write(2)
    with cli.started("up", "--foreground") as process:
        until((cli.home / "run" / "small" / appears).exists, 20, appears)
        start = time.monotonic()
        process.terminate()
        ended = finish(process, LEAVE_S, start)
    assert ended.code == 0, ended.said
    assert "Traceback" not in ended.err
    assert [path.name for path in (cli.home / "run" / "small").iterdir()] == ["lock"]


def test_what_status_calls_ready_is_so_in_the_file_that_other_commands_read(cli: Cli) -> None:
    cli.write(2)
    file = cli.home / "run" / "small" / "cluster.json"
    with cli.started("up", "--foreground") as process:
        until(file.exists, 20, "the root")
        assert json_object(file.read_text() + "\n")["forming"]
        with cli.client() as client:
            deadline = time.monotonic() + 30
            while client.status(wait_s=20.0).state != "ready":  # without a pause: the first answer that says so
                assert time.monotonic() < deadline
            assert not json_object(file.read_text() + "\n")["forming"]
        process.terminate()
        assert finish(process, LEAVE_S, time.monotonic()).code == 0


def await_ready(cli: Cli) -> None:
    """Wait for every node of a cluster that something else starts."""

    def ready() -> bool:
        announced = (cli.home / "run" / "small" / "cluster.json").exists()
        return announced and cli.status().state == "ready"

    until(ready, 30, "the cluster to be ready")


# --- when the root dies -------------------------------------------------------------------------------------------


def test_workers_leave_by_themselves_when_the_root_is_killed_and_a_new_up_works(cli: Cli, greedy_text: str) -> None:
    cli.up(4)
    root = cli.status().nodes[0].pid
    pids = [
        root,
        *(child.pid for child in psutil.Process(root).children(recursive=True)),
    ]  # the front and the gateway too
    kill(root)
    took_s = until(lambda: all(map(gone, pids)), LEAVE_S, "the workers to leave")
    print(f"workers gone after the root's death: {took_s:.2f} s")
    ended = "cluster 'small' ended unexpectedly (`dllama-zmq logs root` shows its log); `dllama-zmq up` starts it"
    assert cli.run_here("status").error() == ended
    cli.up(4)
    assert answer(cli) == greedy_text
    cli.down()


def test_down_clears_away_what_a_killed_root_left(cli: Cli) -> None:
    cli.up(2)
    kill(cli.status().pid)
    until(lambda: not cli.processes(), LEAVE_S, "the worker to leave")
    assert cli.sockets() != []
    assert cli.down().err == "small was not running\n"
    assert cli.sockets() == []


def test_a_client_in_mid_answer_hears_that_the_root_was_killed(cli: Cli) -> None:
    cli.up(2)
    with long_answer(cli) as process:
        start = time.monotonic()
        kill(cli.pid("root"))
        ended = finish(process, NOTICE_S, start)
    assert "went away" in ended.error()
    cli.down()


# --- logs ---------------------------------------------------------------------------------------------------------


def test_commands_that_read_no_model_do_not_wait_for_what_reads_models() -> None:
    """Half a second on a Raspberry Pi, each time."""
    slow = {"asyncio", "huggingface_hub", "jinja2", "llvmlite", "numpy", "prompt_toolkit", "pydantic", "sentencepiece"}
    slow |= {"ssl", "tokenizers", "rich.console", "yaml", "dllama_zmq.hub.cache"}
    assert slow & loaded_by("cluster", "generate", "logs", "chat.command", "chat.lines") == set()


def test_nodes_and_the_gateway_load_nothing_that_only_commands_or_some_of_them_need() -> None:
    slow = {"rich.console", "yaml", "dllama_zmq.hub.cache", "huggingface_hub", "numba"}
    own = {"root": {"sentencepiece", "tokenizers"}, "worker": {"dllama_zmq.bus.client_messages"}, "gateway": set()}
    for name, more in own.items():
        assert (slow | more) & loaded_by(name) == set()


def test_a_command_does_not_look_for_garbage_in_what_it_has_loaded(cli: Cli) -> None:
    """It would look at new objects a hundred times, at all of them several times, and once more at the end."""
    code = (
        "import gc, sys\n"
        "looks = []\n"
        "gc.callbacks.append(lambda phase, about: looks.append(phase))\n"
        "sys.argv = ['dllama-zmq', 'ps']\n"
        "from dllama_zmq.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(len(looks) < 20, gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    command, env = [sys.executable, "-c", code], cli.environment()
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=env)
    assert process.stdout == "True True True\n"


def loaded_by(*names: str) -> set[str]:
    """The modules that a new process has loaded after those of these commands."""
    modules = ", ".join(f"dllama_zmq.cli.{name}" for name in names)
    code = f"import {modules}, sys; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(process.stdout.split())


def test_logs_are_printed_by_node(cli: Cli) -> None:
    cli.up(2)
    root, worker = cli.run("logs"), cli.run("logs", "worker1", "-n", "2")
    assert (root.code, root.err) == (0, "")
    assert re.search(r"INFO .* up name=small nodes=2 ", root.out)
    assert len(worker.out.splitlines()) == 2
    assert "loaded bytes=" in worker.out
    assert cli.run_here("logs", "nobody").error() == "cluster 'small' has no node 'nobody'; its nodes are root, worker1"
    cli.down()


def test_a_worker_says_whom_it_joined_and_when_it_is_ready(cli: Cli) -> None:
    cli.up(2)
    log = cli.run("logs", "worker1").out
    joined, ready = "joined the root at ipc://.* as worker1 node=1 of=2", "ready to answer the root's steps"
    assert re.search(f"{joined}\n(.*\n)*.* {ready}\n", log)
    cli.down()


def test_logs_before_the_first_start_say_so(cli: Cli) -> None:
    cli.write(2)
    assert cli.run_here("logs", "worker1").error().endswith("no log yet; worker1 has not run on this host")


# --- again and again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.release)])
def test_rounds_of_up_generate_down(cli: Cli, rounds: int) -> None:
    path = cli.write(2)
    soak = subprocess.run(
        [sys.executable, str(SOAK), str(path), "--rounds", str(rounds), "--steps", "20"],
        capture_output=True,
        timeout=280,
        text=True,
        env=cli.environment(),
    )
    print(soak.stdout)
    assert (soak.returncode, soak.stderr) == (0, "")
    assert f"{rounds} rounds" in soak.stdout.splitlines()[-1]


def test_soak_ends_at_the_first_failure_and_says_which(cli: Cli) -> None:
    path = cli.write(2, model="nowhere.m")
    soak = subprocess.run(
        [sys.executable, str(SOAK), str(path), "--rounds", "3"],
        capture_output=True,
        timeout=60,
        text=True,
        env=cli.environment(),
    )
    assert soak.returncode == 1
    assert "round 1: up failed" in soak.stderr
    assert "there is no " in soak.stderr
