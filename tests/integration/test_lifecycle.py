"""A cluster's life as its user sees it: up, status, generate, down, and what happens when a process dies."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from command_line import Cli, Process, await_words, finish, gone, json_object, kill, read_some, until

import dllama_zmq

SOAK = Path(__file__).parents[2] / "tools" / "soak.py"
PROMPT = "once upon a time"
LEAVE_S = 15.0
NOTICE_S = 20.0


@pytest.fixture(scope="module")
def greedy_text(small_model: Path) -> str:
    """40 greedy tokens after PROMPT, from the model in this process on one node: no bus, no other process."""
    with dllama_zmq.load(small_model) as model:
        return "".join(model.generate(PROMPT, max_tokens=40))


def answer(cli: Cli) -> str:
    """The same 40 tokens from the running cluster, asked in this process."""
    with cli.client() as client:
        return client.text(PROMPT, max_tokens=40)


@contextmanager
def long_answer(cli: Cli) -> Iterator[Process]:
    """A `generate` in mid-answer."""
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 20)
        yield process


# --- up, status, down ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
def test_a_cluster_comes_up_tells_its_state_answers_and_goes_down(cli: Cli, n_nodes: int, greedy_text: str) -> None:
    up = cli.up(n_nodes)
    assert up.out == ""
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
    down = cli.down()
    assert (down.out, "small is down" in down.err) == ("", True)
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
    assert cli.run("up").error() == "cluster 'small' is running already; `dllama-zmq down` stops it"
    assert cli.run("up", "--foreground").error() == "cluster 'small' is running already; `dllama-zmq down` stops it"
    assert cli.status().pid == pid
    assert answer(cli) == greedy_text
    cli.down()


def test_up_status_and_down_take_the_file_with_a_flag_as_others_do(cli: Cli) -> None:
    cli.write(1).rename(cli.folder / "other.yaml")
    assert cli.run("up", "--cluster", "other.yaml").code == 0
    running = cli.run("up", "other.yaml").error()
    assert running == "cluster 'small' is running already; `dllama-zmq down --cluster other.yaml` stops it"
    for command in ("status", "down"):
        result = cli.run(command, "--cluster", "other.yaml")
        assert result.code == 0, result.said
    sentence = cli.run("status", "other.yaml", "--cluster", "other.yaml").error()
    assert sentence == "cluster 'small' is not running; `dllama-zmq up --cluster other.yaml` starts it"
    for command in ("up", "down", "status"):
        twice = cli.run(command, "other.yaml", "--cluster", "third.yaml").error(2)
        assert twice == "two clusters are given, other.yaml and --cluster third.yaml; give one"


def test_down_and_status_say_where_no_cluster_runs(cli: Cli) -> None:
    cli.up(1)
    cli.down()
    assert cli.down().err == "small was not running\n"
    assert cli.run("status").error() == "cluster 'small' is not running; `dllama-zmq up` starts it"
    status = cli.run("status", "--json")
    assert (status.code, status.out) == (1, '{"state":"down"}\n')


# --- in the foreground --------------------------------------------------------------------------------------------


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


def await_ready(cli: Cli) -> None:
    """Wait for every node of a cluster that something else starts."""

    def ready() -> bool:
        announced = (cli.home / "run" / "small" / "cluster.json").exists()
        return announced and cli.status().state == "ready"

    until(ready, 30, "the cluster to be ready")


# --- when the root dies -------------------------------------------------------------------------------------------


def test_workers_leave_by_themselves_when_the_root_is_killed_and_a_new_up_works(cli: Cli, greedy_text: str) -> None:
    cli.up(4)
    pids = [node.pid for node in cli.status().nodes]
    kill(pids[0])
    took_s = until(lambda: all(map(gone, pids)), LEAVE_S, "the workers to leave")
    print(f"workers gone after the root's death: {took_s:.2f} s")
    ended = "cluster 'small' ended unexpectedly (`dllama-zmq logs root` shows its log); `dllama-zmq up` starts it"
    assert cli.run("status").error() == ended
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


def test_a_client_in_mid_answer_is_told_when_the_root_is_killed(cli: Cli) -> None:
    cli.up(2)
    with long_answer(cli) as process:
        start = time.monotonic()
        kill(cli.pid("root"))
        ended = finish(process, NOTICE_S, start)
    assert "went away" in ended.error()
    cli.down()


# --- when a worker dies -------------------------------------------------------------------------------------------


def test_a_worker_that_dies_idle_is_started_again(cli: Cli, greedy_text: str) -> None:
    cli.up(2)
    dead = cli.pid("worker1")
    kill(dead)
    took_s = until(lambda: cli.pid("worker1") not in (0, dead), 30, "worker1 to be back")
    assert answer(cli) == greedy_text
    assert "starting again worker1: it ended with signal 9" in (cli.log_folder / "root.log").read_text()
    print(f"a worker that died idle was back after {took_s:.2f} s")
    cli.down()


def test_a_worker_that_dies_is_started_again_where_the_logs_have_been_removed(cli: Cli, greedy_text: str) -> None:
    cli.up(2)
    shutil.rmtree(cli.log_folder)
    dead = cli.pid("worker1")
    kill(dead)
    until(lambda: cli.pid("worker1") not in (0, dead), 30, "worker1 to be back")
    assert answer(cli) == greedy_text
    assert (cli.log_folder / "worker1.log").exists()
    cli.down()


def test_an_answer_asked_for_before_a_dead_worker_is_back_waits_for_it(cli: Cli, greedy_text: str) -> None:
    cli.up(2)
    kill(cli.pid("worker1"))
    until(lambda: cli.status().state == "forming", LEAVE_S, "the root to miss worker1")
    assert answer(cli) == greedy_text
    cli.down()


def test_a_worker_that_dies_in_mid_answer_ends_it_with_one_sentence(cli: Cli, greedy_text: str) -> None:
    cli.up(4)
    with long_answer(cli) as process:
        start = time.monotonic()
        kill(cli.pid("worker2"))
        ended = finish(process, NOTICE_S, start)
    assert re.fullmatch(r"worker2 was lost at step \d+, .*", ended.error())
    print(f"a worker's death in mid-answer was told after {ended.seconds:.2f} s")
    assert answer(cli) == greedy_text
    cli.down()


def test_a_worker_that_stops_answering_in_mid_answer_ends_it_with_one_sentence(cli: Cli) -> None:
    cli.up(2)
    pid = cli.pid("worker1")
    with long_answer(cli) as process:
        start = time.monotonic()
        kill(pid, signal.SIGSTOP)
        ended = finish(process, NOTICE_S, start)
    assert re.fullmatch(r"worker1 was lost at step \d+, .*", ended.error())
    down = cli.down()
    assert down.seconds < 20  # limits.stop_s for the stopped one to leave, and then it is killed
    assert gone(pid)
    print(f"a stopped worker was told after {ended.seconds:.2f} s; down took {down.seconds:.2f} s")


def test_a_stopped_worker_that_goes_on_joins_again(cli: Cli, greedy_text: str) -> None:
    cli.up(2)
    pid = cli.pid("worker1")
    kill(pid, signal.SIGSTOP)
    until(lambda: cli.status().state == "forming", NOTICE_S, "the root to miss worker1")
    kill(pid, signal.SIGCONT)
    until(lambda: cli.status().state == "ready", 30, "worker1 to join again")
    assert cli.pid("worker1") == pid
    assert answer(cli) == greedy_text
    cli.down()


def test_a_worker_that_dies_at_every_start_ends_up_with_the_reason(cli: Cli) -> None:
    cli.write(2)
    with cli.started("up") as process:
        start = time.monotonic()
        while process.poll() is None and time.monotonic() < start + 30:
            for node in cli.processes():
                with suppress(psutil.Error):
                    if "worker1" in node.cmdline():
                        node.kill()
        ended = finish(process, 10, start)
    assert ended.error().startswith("worker1 ended 3 times before the cluster was ready, last with signal 9; ")
    assert cli.processes() == []


def test_a_worker_elsewhere_says_why_a_root_gave_up(cli: Cli) -> None:
    workers = [{"name": "far", "host": "192.0.2.1"}, {"name": "here"}, {"name": "off", "host": "192.0.2.2"}]
    cli.write(4, host="0.0.0.0", open_bus=True, workers=workers)
    with (
        cli.started("worker", f"127.0.0.1:{cli.ports['replies']}", "--name", "far") as worker,
        cli.started("up", "--foreground") as root,
    ):

        def has_given_up() -> bool:
            for node in cli.processes():
                with suppress(psutil.Error):
                    if "here" in node.cmdline():
                        node.kill()
            return root.poll() is not None

        await_words(worker, "joined the root at ")
        until(has_given_up, 60, "the root to give up")
        await_words(worker, "joining again: the cluster went down: here ended 3 times before the cluster was ready")


def test_a_cluster_in_the_foreground_says_who_is_missing_and_is_not_up_before(cli: Cli) -> None:
    cli.write(2, host="0.0.0.0", open_bus=True, workers=[{"name": "far", "host": "192.0.2.1"}])
    replies = f"127.0.0.1:{cli.ports['replies']}"
    with cli.started("up", "--foreground") as root:
        said = await_words(root, "; start on 192.0.2.1: dllama-zmq worker ")
        assert "forming: far " in said
        assert "up name=" not in said
        assert json_object(cli.run("ps", "--json").out)["clusters"][0]["state"] == "forming"
        with cli.started("worker", replies):
            await_words(root, "up name=small nodes=2")
            assert json_object(cli.run("ps", "--json").out)["clusters"][0]["state"] == "up"
        root.terminate()
        assert finish(root, LEAVE_S, time.monotonic()).code == 0


# --- a worker started by hand -------------------------------------------------------------------------------------


def test_a_worker_started_by_hand_outlives_its_root_and_joins_the_next(cli: Cli, greedy_text: str) -> None:
    cli.write(2, host="0.0.0.0", open_bus=True, workers=[{"name": "far", "host": "192.0.2.1"}])
    with cli.started("worker", "--root", f"tcp://127.0.0.1:{cli.ports['replies']}") as worker:
        assert cli.run("up").code == 0
        assert (cli.pid("far"), answer(cli)) == (worker.pid, greedy_text)

        root = cli.pid("root")
        kill(root)
        until(lambda: gone(root), LEAVE_S, "the root to end")
        assert cli.run("up").code == 0
        assert (cli.pid("far"), answer(cli)) == (worker.pid, greedy_text)

        cli.down()
        assert worker.poll() is None
        assert cli.run("up").code == 0
        assert (cli.pid("far"), answer(cli)) == (worker.pid, greedy_text)

        start = time.monotonic()
        worker.terminate()
        ended = finish(worker, LEAVE_S, start)
        assert ended.code == 0, ended.said
    until(lambda: cli.status().state == "forming", LEAVE_S, "the root to miss its worker")
    cli.down()


def test_a_worker_elsewhere_says_why_an_up_failed(cli: Cli) -> None:
    far = [{"name": name, "host": f"192.0.2.{i}"} for i, name in enumerate(("near", "far", "off"), 1)]
    cli.write(4, host="0.0.0.0", open_bus=True, workers=far)
    with (
        cli.started("worker", f"127.0.0.1:{cli.ports['replies']}", "--name", "near") as worker,
        cli.started("up") as up,
    ):
        await_words(worker, "joined the root at ")
        up.send_signal(signal.SIGINT)
        said = await_words(worker, "joining again: ").partition("joining again: ")[2]
        assert finish(up, LEAVE_S, time.monotonic()).code == 130
    assert said.startswith("the cluster went down before it was ready: near is ")
    assert "; far has not joined yet; off has not joined yet" in said


def test_up_says_how_to_start_a_worker_that_does_not_come(cli: Cli) -> None:
    far = [{"name": "far", "host": "192.0.2.1"}]
    cli.write(2, host="0.0.0.0", open_bus=True, workers=far, limits={"join_s": 1})
    assert "after 1 s (limits.join_s): far has not joined yet: on 192.0.2.1: dllama-zmq worker" in cli.run("up").error()
    assert cli.processes() == []


# --- logs ---------------------------------------------------------------------------------------------------------


def test_commands_that_read_no_model_do_not_wait_for_what_reads_models() -> None:
    """Half a second on a Raspberry Pi, each time."""
    code = "import dllama_zmq.cli.cluster, dllama_zmq.cli.generate, dllama_zmq.cli.logs, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    slow = {"asyncio", "huggingface_hub", "llvmlite", "numpy", "pydantic", "sentencepiece", "ssl", "tokenizers"}
    assert slow & set(loaded.split()) == set()


def test_logs_are_printed_by_node(cli: Cli) -> None:
    cli.up(2)
    root, worker = cli.run("logs"), cli.run("logs", "worker1", "-n", "2")
    assert (root.code, root.err) == (0, "")
    assert re.search(r"INFO .* up name=small nodes=2 ", root.out)
    assert len(worker.out.splitlines()) == 2
    assert "loaded bytes=" in worker.out
    assert cli.run("logs", "nobody").error() == "cluster 'small' has no node 'nobody'; its nodes are root, worker1"
    cli.down()


def test_a_worker_tells_whom_it_joined_and_when_it_is_ready(cli: Cli) -> None:
    cli.up(2)
    log = cli.run("logs", "worker1").out
    joined, ready = "joined the root at ipc://.* as worker1 node=1 of=2", "ready to answer the root's steps"
    assert re.search(f"{joined}\n(.*\n)*.* {ready}\n", log)
    cli.down()


def test_logs_before_the_first_start_say_so(cli: Cli) -> None:
    cli.write(2)
    assert cli.run("logs", "worker1").error().endswith("no log yet; worker1 has not run on this host")


# --- again and again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.release)])
def test_rounds_of_up_generate_down(cli: Cli, rounds: int) -> None:
    path = cli.write(2)
    soak = subprocess.run(
        [sys.executable, str(SOAK), str(path), "--rounds", str(rounds), "--steps", "20"],
        capture_output=True, timeout=280, text=True, env=cli.environment(),
    )  # fmt: skip
    print(soak.stdout)
    assert (soak.returncode, soak.stderr) == (0, "")
    assert f"{rounds} rounds" in soak.stdout.splitlines()[-1]


def test_soak_ends_at_the_first_failure_and_says_which(cli: Cli) -> None:
    path = cli.write(2, model="nowhere.m")
    soak = subprocess.run(
        [sys.executable, str(SOAK), str(path), "--rounds", "3"],
        capture_output=True, timeout=60, text=True, env=cli.environment(),
    )  # fmt: skip
    assert soak.returncode == 1
    assert "round 1: up failed" in soak.stderr
    assert "there is no " in soak.stderr
