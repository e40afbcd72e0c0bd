"""What a cluster does when a worker dies or stops answering, and what a worker started by hand says and outlives."""

from __future__ import annotations

import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command_line import Cli, await_words, finish, gone, json_object, kill, read_some, until
from integration.answers import LEAVE_S, NOTICE_S, PROMPT, answer

import dllama_zmq

N_TOKENS = 1900


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


@pytest.fixture(scope="module")
def whole(small_model: Path) -> list[str]:
    """The pieces of an answer of N_TOKENS: from one node in this process."""
    with dllama_zmq.load(small_model) as model:
        return list(model.generate(PROMPT, max_tokens=N_TOKENS))


@pytest.mark.few(1)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_an_answer_continues_where_it_was_when_a_lost_worker_is_back(cli: Cli, whole: list[str], end: int) -> None:
    cli.up(4)
    pid = cli.pid("worker2")
    with cli.started("generate", PROMPT, "--temp", "0", "-n", str(N_TOKENS)) as process:
        start = time.monotonic()
        text = read_some(process, 3 * len(PROMPT))
        kill(pid, end)
        until(lambda: cli.pid("worker2") not in (0, pid), 30, "worker2 to be back")
        (request,) = cli.status().requests
        text += read_some(process, len(PROMPT + "".join(whole[: request.tokens + 10])) - len(text))
        process.send_signal(signal.SIGINT)
        ended = finish(process, 60, start)
    assert ended.code == 130, ended.said
    assert (PROMPT + "".join(whole)).startswith((text.decode() + ended.out).rstrip("\n")), ended.said
    assert gone(pid)
    # Between two steps its connection is looked at, too.
    lost = r"worker2 was lost at step \d+, .*; 1 request waits|lost worker2: its connection broke"
    assert re.search(lost, (cli.log_folder / "root.log").read_text())
    cli.down()


def test_an_answer_whose_worker_comes_back_too_late_ends_with_one_sentence_and_the_next_is_whole(
    cli: Cli, greedy_text: str
) -> None:
    cli.write(
        2, host="0.0.0.0", security="none", workers=[{"name": "far", "host": "192.0.2.1"}], limits={"rejoin_s": 2}
    )
    replies = f"127.0.0.1:{cli.ports['replies']}"
    with cli.started("worker", replies) as worker:
        assert cli.run("up").code == 0
        with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
            start = time.monotonic()
            read_some(process, 3 * len(PROMPT))
            worker.kill()
            ended = finish(process, NOTICE_S, start)
        assert re.fullmatch("the cluster did not become ready: far was lost: .*", ended.error())
        with cli.started("worker", replies):
            until(lambda: cli.status().state == "ready", 30, "the worker to join again")
            assert answer(cli) == greedy_text
            cli.down()


def test_a_frozen_worker_joins_again_when_it_is_resumed(cli: Cli, greedy_text: str) -> None:
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

        def has_given_up() -> bool:
            for node in cli.processes_of("worker1"):
                with suppress(psutil.NoSuchProcess):
                    node.kill()
            return process.poll() is not None

        until(has_given_up, 60, "`up` to give up")
        ended = finish(process, 10, start)
    assert ended.error().startswith("worker1 ended 3 times before the cluster was ready, last with signal 9; ")
    assert cli.processes() == []


def test_a_worker_elsewhere_says_why_a_root_gave_up(cli: Cli) -> None:
    workers = [{"name": "far", "host": "192.0.2.1"}, {"name": "here"}, {"name": "off", "host": "192.0.2.2"}]
    cli.write(4, host="0.0.0.0", security="none", workers=workers)
    with (
        cli.started("worker", f"127.0.0.1:{cli.ports['replies']}", "--name", "far") as worker,
        cli.started("up", "--foreground") as root,
    ):

        def has_given_up() -> bool:
            for node in cli.processes_of("here"):
                with suppress(psutil.NoSuchProcess):
                    node.kill()
            return root.poll() is not None

        await_words(worker, "joined the root at ")
        until(has_given_up, 60, "the root to give up")
        await_words(worker, "joining again: the cluster went down: here ended 3 times before the cluster was ready")


def test_a_cluster_in_the_foreground_says_who_is_missing_and_is_not_up_before(cli: Cli) -> None:
    cli.write(2, host="0.0.0.0", security="none", workers=[{"name": "far", "host": "192.0.2.1"}])
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


def test_a_worker_started_by_hand_outlives_its_root_and_joins_the_next(cli: Cli, greedy_text: str) -> None:
    cli.write(2, host="0.0.0.0", security="none", workers=[{"name": "far", "host": "192.0.2.1"}])
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
    cli.write(4, host="0.0.0.0", security="none", workers=far)
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


def test_a_worker_that_compiles_says_why_an_up_failed(cli: Cli) -> None:
    cli.write(2, host="0.0.0.0", security="none", workers=[{"name": "far", "host": "192.0.2.1"}])
    address, nothing = f"127.0.0.1:{cli.ports['replies']}", str(cli.folder / "cache")
    with cli.started("worker", address, XDG_CACHE_HOME=nothing) as worker, cli.started("up") as up:
        await_words(up, "far compiles kernels")
        up.send_signal(signal.SIGINT)
        said = await_words(worker, "joining again: ").partition("joining again: ")[2]
        assert finish(up, LEAVE_S, time.monotonic()).code == 130
    assert said.splitlines()[0] == "the cluster went down before it was ready: far is loading"


def test_up_says_how_to_start_a_worker_that_does_not_come(cli: Cli) -> None:
    far = [{"name": "far", "host": "192.0.2.1"}]
    cli.write(2, host="0.0.0.0", security="none", workers=far, limits={"join_s": 1})
    assert "after 1 s (limits.join_s): far has not joined yet: on 192.0.2.1: dllama-zmq worker" in cli.run("up").error()
    assert cli.processes() == []
