"""`generate` at its end: Ctrl-C, a killed client, a closed pipe; and what it refuses to answer."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack

import pytest
from command_line import Cli, finish, kill, read_some, until
from integration.answers import PROMPT, alone

from dllama_zmq.local import LocalModel

SOON_S = 15.0  # on a busy machine


def n_stopped(cli: Cli) -> int:
    """How many answers the root has not brought to their end, because nobody wanted them any more."""
    return len(re.findall("reason=cancelled|client left", (cli.log_folder / "root.log").read_text()))


# --- how it ends --------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_and_the_cluster_still_answers(running: Cli, local: LocalModel) -> None:
    before = n_stopped(running)
    with running.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 5)
        assert running.status().active == 1
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = finish(process, SOON_S, start)
    assert (ended.code, ended.err) == (130, "")
    took_s = until(lambda: running.status().active == 0, SOON_S, "the root to stop the answer")
    assert n_stopped(running) == before + 1
    assert running.generate("-n", "10").out == f"{PROMPT}{alone(local, PROMPT, 10)}\n"
    print(f"after Ctrl-C the command ended in {ended.seconds:.2f} s, the root was idle {took_s:.2f} s later")


def test_a_killed_client_frees_the_cluster(running: Cli) -> None:
    before = n_stopped(running)
    with running.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 5)
        process.kill()
        process.wait()
    until(lambda: running.status().active == 0, SOON_S, "the root to stop the answer")
    assert n_stopped(running) == before + 1


def test_a_reader_that_has_had_enough_ends_it_quietly(running: Cli) -> None:
    before = n_stopped(running)
    with running.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        assert process.stdout is not None
        assert process.stdout.read(10) == PROMPT[:10].encode()
        process.stdout.close()
        assert process.wait(SOON_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    until(lambda: running.status().active == 0, SOON_S, "the root to stop the answer")
    assert n_stopped(running) == before + 1


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_the_cluster_of_one_call_ends_with_the_call_however_that_ends(cli: Cli, number: int) -> None:
    cli.write(2)
    with cli.started("generate", PROMPT, "--temp", "0", "-n", "1900") as process:
        read_some(process, len(PROMPT) + 20)
        kill(process.pid, number)
    until(lambda: not cli.processes() and not cli.sockets(), SOON_S, "the cluster to end with its owner")


def test_two_calls_with_no_cluster_running_share_the_one_that_comes_up(cli: Cli, local: LocalModel) -> None:
    cli.write(2)
    prompts = ["once upon a time", "a cat and a dog"]
    with ExitStack() as stack:
        start = time.monotonic()
        processes = [stack.enter_context(cli.started("generate", p, "--temp", "0", "-n", "30")) for p in prompts]
        results = [finish(process, 60, start) for process in processes]
    assert [result.out for result in results] == [f"{p}{alone(local, p, 30)}\n" for p in prompts], results
    until(lambda: not cli.processes(), SOON_S, "the cluster to end after both")


# --- what cannot be answered --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a b c d " * 600], "tokens; this model's own context is 2048"),
        (["hi", "--cluster", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_a_prompt_or_file_that_cannot_be_used_is_refused_in_one_sentence(
    running: Cli, words: list[str], says: str
) -> None:
    assert says in running.run("generate", *words).error(1)


def test_a_prompt_that_is_no_text_is_refused_in_one_sentence(running: Cli) -> None:
    assert "not UTF-8" in running.run("generate", "-", stdin=b"once \xff upon").error(2)
    assert "not UTF-8" in running.run("generate", "once \udcff upon").error(2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "hi", "--nonsense"], "--nonsense"),
        (["generate", "hi", "-n", "many"], "--steps"),
        (["generate", "hi", "-n", "0"], "--steps is 0"),
        (["generate", "hi", "--temp", "-1"], "temperature is -1"),
        (["generate", "hi", "--temp", "nan"], "temperature"),
        (["generate", "hi", "--temp", "inf"], "temperature"),
        (["generate", "hi", "--topp", "1.5"], "top_p is 1.5"),
        (["generate", "hi", "--topp", "-0.1"], "top_p is -0.1"),
        (["generate", "hi", "--topk", "-2"], "top_k is -2"),
        (["generate", "hi", "--connect", ""], "--connect : no host"),
        (["generate", "hi", "-n", "-2"], "or -1 for no limit, got '-2'"),
        (["generate", "hi", "--sync", "f8"], "f8"),
        (["generate", "hi", "--threads", "0"], "--threads"),
        (["generate", "hi", "--seed", "-7"], "--seed"),
        (["generate", "hi", "--seed", "9" * 30], "--seed"),
        (["generate", "hi", "-n", "9" * 30], "--steps"),
        (["generate"], "the prompt is missing"),
        (["generate", "hi", "-p", "ho"], "the prompt is given twice"),
        (["worker"], "give the root once"),
        (["worker", "pi1", "--root", "pi1"], "give the root once"),
        (["generate", "hi", "--connect", "pi1", "--cluster", "a.yaml"], "give one of them"),
        (["status", "a.yaml", "--connect", "pi1"], "give one of them"),
        (["up", "--workers", "pi2"], "has its own list of workers"),
        (["worker", "--root", "ftp://a:1"], "the root's address ftp://a:1"),
        (["worker", "--root", "tcp://a:http"], "is no port"),
        (["gnerate", "hi"], "gnerate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_sentence_with_exit_code_2(running: Cli, words: list[str], says: str) -> None:
    assert says in running.run_here(*words).error(2)
