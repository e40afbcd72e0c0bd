"""What becomes of requests where workers are lost again and again, and where the front or the root ends."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from command_line import Cli, finish, gone, kill, until
from integration.answers import LEAVE_S, NOTICE_S, answer, long_answer
from integration.nodes import SPEC, TOKENS, Context, Start, a_root, form, inproc
from integration.services import tokenizer_of
from integration.stranger import Exit, Stranger
from tiny import write_tiny_pair

from dllama_zmq.constraint.grammar_child import translated
from dllama_zmq.constraint.matching import Vocabulary
from dllama_zmq.errors import WorkerLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sampling import Sampling


class EndsInStep(Stranger):
    """Ends without a word in the middle of the `n`-th step that it is in."""

    def __init__(self, context: Context, root: str, n: int) -> None:
        super().__init__(context, root)
        self._n, self._steps = n, set[int]()

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        self._steps.add(fields[1])
        if len(self._steps) == self._n:
            raise Exit
        super().send_part(kind, *fields, arrays=arrays)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), SPEC) as file:
        yield file


def test_a_request_that_workers_are_lost_with_again_and_again_ends_and_the_next_is_answered(
    context: Context, model: ModelFile, start: Start
) -> None:
    places, failed, n_lost = inproc(), [], 0
    with a_root(context, model, places) as root:
        engine = Engine(root, max_sequences=1)
        sequence = engine.add(TOKENS, Sampling(), 5)
        while not failed and n_lost < 10:
            start(EndsInStep(context, places.replies[0], 1))
            form(root)
            try:
                failed = engine.step().failed
            except WorkerLost:
                n_lost += 1
        assert n_lost == 3
        [(ended, error)] = failed
        assert ended is sequence
        assert isinstance(error, WorkerLost)
        assert "a worker was lost 4 times while this request waited for its next token" in str(error)
        assert not engine.busy
        start(Stranger(context, places.replies[0]))
        form(root)
        engine.add(TOKENS, Sampling(), 1)
        assert engine.step().events


def losses(engine: Engine, start: Start, worker: Callable[[], EndsInStep]) -> int:
    """Run `engine` to its end with one worker after another; how many of them were lost."""
    n_lost = 0
    while engine.busy:
        start(worker())
        form(engine.root)
        try:
            while engine.busy:
                assert not engine.step().failed
        except WorkerLost:
            n_lost += 1
    return n_lost


def test_a_request_that_progresses_between_losses_is_not_given_up(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    with a_root(context, model, places) as root:
        engine = Engine(root, max_sequences=1)
        sequence = engine.add(TOKENS, Sampling(), 6)
        assert losses(engine, start, lambda: EndsInStep(context, places.replies[0], 2)) >= 5
        assert sequence.n_new == 6


def test_an_answer_under_a_grammar_is_the_same_whatever_is_lost_meanwhile(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    vocabulary = Vocabulary(tokenizer_of(model), SPEC.vocab_size)
    pattern = "([a-z]{2,5}[,;]){6}"
    request: Any = {"sampling": Sampling(temperature=1.5, seed=3), "grammar": translated("regex", pattern)}
    undisturbed = Engine(Root(context, model, RootSettings(kernels="numpy")), 1, vocabulary)
    expected = undisturbed.add(TOKENS, **request)
    while undisturbed.busy:
        undisturbed.step()
    with a_root(context, model, places) as root:
        engine = Engine(root, 1, vocabulary)
        sequence = engine.add(TOKENS, **request)
        assert losses(engine, start, lambda: EndsInStep(context, places.replies[0], 4)) >= 2
    assert sequence.tokens == expected.tokens
    text = tokenizer_of(model).decode(sequence.tokens[sequence.n_prompt :], continues=True)
    assert re.fullmatch(pattern, text)


def front_of(cli: Cli) -> int:
    """The process for clients: the root's child that is no worker."""
    root = psutil.Process(cli.pid("root"))
    return next(child.pid for child in root.children() if "worker" not in child.cmdline())


def test_the_cluster_ends_with_its_front_and_says_so(cli: Cli) -> None:
    cli.up(2)
    front, root = front_of(cli), cli.pid("root")
    with long_answer(cli) as process:
        kill(front)
        assert "went away" in finish(process, NOTICE_S, time.monotonic()).error()
    until(lambda: gone(root) and not cli.processes(), LEAVE_S, "the cluster to end")
    assert cli.sockets() == []
    log = (cli.log_folder / "root.log").read_text()
    assert log.count("the process for clients ended with signal 9") == 1
    assert "Traceback" not in log
    assert cli.run("up").code == 0
    cli.down()


def test_a_waiting_client_hears_that_the_root_was_killed_and_up_works_again(cli: Cli) -> None:
    cli.up(2)
    with long_answer(cli) as process:
        kill(cli.pid("root"))
        assert "went away" in finish(process, NOTICE_S, time.monotonic()).error()
    until(lambda: not cli.processes(), LEAVE_S, "front and worker to end")
    assert cli.run("up").code == 0
    assert answer(cli)
    cli.down()


def test_a_stopped_front_ends_with_a_root_that_is_killed(cli: Cli) -> None:
    cli.up(2)
    root = cli.pid("root")
    kill(front_of(cli), signal.SIGSTOP)
    kill(root)
    until(lambda: not cli.processes(), LEAVE_S, "all processes to end")
    assert cli.run("up").code == 0
    cli.down()


def test_down_ends_a_cluster_whose_requests_wait_for_a_worker(cli: Cli) -> None:
    cli.up(2)
    with long_answer(cli) as process:
        kill(cli.pid("worker1"), signal.SIGSTOP)
        until(lambda: cli.status().state == "forming", NOTICE_S, "the root to miss worker1")
        down = cli.down()
        result = finish(process, LEAVE_S, time.monotonic())
    assert result.error() == "the cluster is going down"
    print(f"down took {down.seconds:.1f} s")


def test_a_client_that_leaves_while_a_worker_is_awaited_leaves_no_request(cli: Cli) -> None:
    cli.up(2)
    with long_answer(cli) as stopped, long_answer(cli) as killed:
        kill(cli.pid("worker1"), signal.SIGSTOP)
        until(lambda: cli.status().state == "forming", NOTICE_S, "the root to miss worker1")
        stopped.send_signal(signal.SIGINT)
        killed.kill()
        until(lambda: cli.status().active == 0, NOTICE_S, "the requests to end")
        assert (cli.status().state, finish(stopped, LEAVE_S, time.monotonic()).code) == ("forming", 130)
    assert cli.status().kv.in_use == 0
    cli.down()


def test_a_front_that_stops_for_some_seconds_loses_its_clients_and_serves_new_ones(cli: Cli) -> None:
    cli.up(2)
    front = front_of(cli)
    with long_answer(cli) as process:
        kill(front, signal.SIGSTOP)
        ended = finish(process, NOTICE_S, time.monotonic())
        kill(front, signal.SIGCONT)
    assert "went away" in ended.error()
    until(lambda: cli.status().active == 0, NOTICE_S, "the request of the client that has gone to end")
    assert answer(cli)
    cli.down()
