"""How fast a running cluster is: prompts and decoding through its own front door, on the computers that it has.

Knows a client; starts nothing and loads nothing. A prompt is words, so its number of tokens is near what was asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from dllama_zmq.bus.client_messages import Piece, Prefill, Started
from dllama_zmq.bus.step_sums import StepSums
from dllama_zmq.client import Client
from dllama_zmq.errors import ClusterError, RequestError
from dllama_zmq.telling import Tells

_WORD = "the "


class RunningRow(Struct, frozen=True, kw_only=True):
    """One case on a running cluster. kB are 1000 bytes of payload; shares are 0 to 1.

    slowest: the node that the others waited for, with its share of all waiting; None where no node stands out.
    """

    test: str
    nodes: int
    tokens_per_s: float
    stddev: float
    samples_tokens_per_s: list[float]
    wait_share: float
    kb_per_token: float
    slowest: str | None
    slowest_share: float | None


def measure_running(
    client: Client, prompts: Sequence[int], generated: Sequence[int], repetitions: int, tells: Tells
) -> Iterator[RunningRow]:
    """The row of each prompt length, then of each number of generated tokens; a warm-up comes first.

    Raises ClusterError where other requests run or wait: they would be measured too. RequestError where a case needs
    more positions than the cluster has room for.
    """
    status = client.status()
    if status.active or status.queued:
        n_others = status.active + status.queued
        raise ClusterError(f"{status.name} answers {n_others} other requests; measure when it is idle")
    n_nodes = len(status.nodes)
    for n_tokens in filter(None, prompts):
        n_words = n_tokens
        tells.now(f"pp{n_tokens}, warm-up")
        for _ in range(2):  # warms up, and finds how many words make n_tokens
            n_found = _run(client, n_words, 1).n_prompt
            n_words = max(1, round(n_words * n_tokens / n_found))
        runs = []
        for i in range(repetitions):
            tells.now(f"pp{n_tokens}, repetition {i + 1} of {repetitions}")
            runs.append(_run(client, n_words, 1))
        yield _row(f"pp{runs[0].n_prompt}", n_nodes, [run.prompt for run in runs])
    for n_tokens in filter(None, generated):
        tells.now(f"tg{n_tokens}, warm-up")
        n_positions = _run(client, 4, min(n_tokens, 8)).n_prompt + n_tokens + 1
        if n_positions > status.seq_len:
            raise RequestError(
                f"tg{n_tokens} needs {n_positions} positions; {status.name} has room for {status.seq_len}"
            )
        samples = []
        for i in range(repetitions):
            tells.now(f"tg{n_tokens}, repetition {i + 1} of {repetitions}")
            samples.append(_run(client, 4, n_tokens + 1).decoding)  # the first token is the prompt's
        yield _row(f"tg{n_tokens}", n_nodes, samples)


@dataclass(slots=True)
class _Run:
    """One answer: the tokens of its prompt, and what the steps of the prompt and of decoding took."""

    n_prompt: int = 1
    prompt: StepSums = field(default_factory=StepSums)
    decoding: StepSums = field(default_factory=StepSums)


def _run(client: Client, n_words: int, max_tokens: int) -> _Run:
    found = _Run()
    for answer in client.generate(_WORD * n_words, max_tokens, ignore_eos=True):
        if isinstance(answer, Started):
            found.n_prompt = answer.prompt_tokens
        elif isinstance(answer, Prefill):
            found.prompt.add(answer.n_tokens, answer.figures)
        elif isinstance(answer, Piece) and answer.figures is not None:
            found.decoding.add(1, answer.figures)
    return found


def _row(test: str, n_nodes: int, samples: Sequence[StepSums]) -> RunningRow:
    speeds = [sample.tokens_per_s() for sample in samples]
    total = StepSums()
    for sample in samples:
        total.add(sample.tokens, sample)
    last = total.slowest(n_nodes)
    return RunningRow(
        test=test,
        nodes=n_nodes,
        tokens_per_s=statistics.mean(speeds),
        stddev=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        samples_tokens_per_s=speeds,
        wait_share=total.wait_s / total.wall_s,
        kb_per_token=(total.sent_bytes + total.received_bytes) / total.tokens / 1000,
        slowest=None if last is None else last.name,
        slowest_share=None if last is None else last.share,
    )
