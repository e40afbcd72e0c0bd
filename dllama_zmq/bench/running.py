"""The speed of a running cluster, measured by a client: prompts and decoding on the computers that it has.

A prompt is made of words, so its number of tokens is near what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dllama_zmq.bench.rows import Row, spread
from dllama_zmq.bus.client_messages import Piece, Prefill, Started
from dllama_zmq.bus.step_sums import StepSums
from dllama_zmq.client import Client
from dllama_zmq.errors import ClusterError, RequestError
from dllama_zmq.telling import Tells


def measure_running(
    client: Client, prompts: Sequence[int], generated: Sequence[int], repetitions: int, tells: Tells
) -> Iterator[Row]:
    """The row of each prompt length, then of each number of generated tokens. A warm-up comes before each.

    Raises ClusterError if other requests run or wait, since they would be measured too; RequestError if a case needs
    more positions than the cluster has.
    """
    status = client.status()
    if n_others := status.active + status.queued:
        raise ClusterError(f"{status.name} answers {n_others} other requests; measure when it is idle")
    n_nodes = len(status.nodes)

    def answers(test: str, n_words: int, max_tokens: int) -> list[_Answer]:
        found = []
        for i in range(repetitions):
            tells.now(f"{test}, repetition {i + 1} of {repetitions}")
            found.append(_answer(client, n_words, max_tokens))
        return found

    for n_tokens in filter(None, prompts):
        n_words = n_tokens
        tells.now(f"pp{n_tokens}, warm-up")
        for _ in range(2):  # warms up, and finds the number of words that make n_tokens
            n_words = max(1, round(n_words * n_tokens / _answer(client, n_words, 1).n_prompt))
        found = answers(f"pp{n_tokens}", n_words, 1)
        yield _row(f"pp{found[0].n_prompt}", n_nodes, [answer.prompt for answer in found])
    for n_tokens in filter(None, generated):
        tells.now(f"tg{n_tokens}, warm-up")
        n_positions = _answer(client, 4, min(n_tokens, 8)).n_prompt + n_tokens + 1
        if n_positions > status.seq_len:
            raise RequestError(
                f"tg{n_tokens} needs {n_positions} positions; {status.name} has room for {status.seq_len}"
            )
        found = answers(f"tg{n_tokens}", 4, n_tokens + 1)  # the prompt's step gives the first token
        yield _row(f"tg{n_tokens}", n_nodes, [answer.decoding for answer in found])


@dataclass(slots=True)
class _Answer:
    """The number of tokens of the prompt; what its steps and those of decoding took."""

    n_prompt: int = 1
    prompt: StepSums = field(default_factory=StepSums)
    decoding: StepSums = field(default_factory=StepSums)


def _answer(client: Client, n_words: int, max_tokens: int) -> _Answer:
    answer = _Answer()
    for event in client.generate("the " * n_words, max_tokens, ignore_eos=True):
        if isinstance(event, Started):
            answer.n_prompt = event.prompt_tokens
        elif isinstance(event, Prefill):
            answer.prompt.add(event.n_tokens, event.figures)
        elif isinstance(event, Piece) and event.figures is not None:
            answer.decoding.add(1, event.figures)
    return answer


def _row(test: str, n_nodes: int, samples: Sequence[StepSums]) -> Row:
    """slowest: the node that the others waited for, and its share of all waiting; None if no node stands out."""
    total = sum(samples, StepSums())
    took, last = total.figures, total.slowest(n_nodes)
    return {
        "test": test,
        "nodes": n_nodes,
        **spread([sample.tokens_per_s() for sample in samples]),
        "wait_share": took.wait_s / took.wall_s,
        "kb_per_token": (took.sent_bytes + took.received_bytes) / total.tokens / 1000,
        "slowest": None if last is None else last.name,
        "slowest_share": None if last is None else last.share,
    }
