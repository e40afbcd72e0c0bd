"""The speed of a running cluster, measured by a client: prompts and decoding on the computers that it has.

A prompt is made of words, so its number of tokens is only near the one asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from dllama_zmq.bench.rows import Row, spread
from dllama_zmq.bus.client_messages import Prefill, Started, Status, TokenText
from dllama_zmq.bus.slowest import StepSums
from dllama_zmq.client import Client
from dllama_zmq.errors import ClusterError, RequestError
from dllama_zmq.reporting import Reporter


def measure_running(
    client: Client,
    prompts: Sequence[int],
    generated: Sequence[int],
    repetitions: int,
    reporter: Reporter,
    notes: list[str],
) -> Iterator[Row]:
    """The row of each prompt length, then of each number of generated tokens; a warm-up comes before each.

    A case that the cluster has no room for is left out, which `notes` then say. Raises RequestError if that leaves
    nothing; ClusterError if other requests run or wait, since they would be measured too.
    """
    status = client.status()
    if n_others := status.active + status.queued:
        raise ClusterError(f"{status.name} answers {n_others} other requests; measure when it is idle")
    cases = [(_prompt_row, n_tokens) for n_tokens in prompts if n_tokens]
    cases += [(_decoding_row, n_tokens) for n_tokens in generated if n_tokens]
    n_rows = 0
    for i, (measure, n_tokens) in enumerate(cases, 1):
        try:
            row = measure(client, status, n_tokens, repetitions, reporter, notes)
        except RequestError as error:
            if i == len(cases) and not n_rows:
                raise
            notes.append(f"{'pp' if measure is _prompt_row else 'tg'}{n_tokens} is left out: {error}")
            continue
        n_rows += 1
        yield row


def _prompt_row(
    client: Client, status: Status, n_tokens: int, repetitions: int, reporter: Reporter, notes: list[str]
) -> Row:
    reporter.activity(f"pp{n_tokens}, warm-up")
    if n_tokens == status.seq_len:
        n_tokens -= 1  # the answer needs one position
        words = f"{status.name} has room for {status.seq_len} tokens in all"
        notes.append(f"pp{n_tokens} instead of pp{n_tokens + 1}: {words}")
    short, n_words = max(1, n_tokens // 8), max(2, n_tokens // 4)  # so few that they fit
    n_short, n_found = (_answer(client, n, 1).n_prompt for n in (short, n_words))
    per_word = max(0.1, (n_found - n_short) / (n_words - short))
    n_words = max(1, n_words + int((n_tokens - n_found) / per_word))
    answers = []
    for i in range(-1, repetitions):  # the first warms up
        reporter.activity(f"pp{n_tokens}, repetition {i + 1} of {repetitions}" if i >= 0 else f"pp{n_tokens}, warm-up")
        answers.append(_answer(client, n_words, 1))
    return _row(f"pp{answers[0].n_prompt}", len(status.nodes), [answer.prompt for answer in answers[1:]])


def _decoding_row(
    client: Client, status: Status, n_tokens: int, repetitions: int, reporter: Reporter, notes: list[str]
) -> Row:
    reporter.activity(f"tg{n_tokens}, warm-up")
    n_positions = _answer(client, 4, min(n_tokens, 8)).n_prompt + n_tokens + 1
    if n_positions > status.seq_len:
        raise RequestError(f"tg{n_tokens} needs {n_positions} positions; {status.name} has room for {status.seq_len}")
    samples = []
    for i in range(repetitions):
        reporter.activity(f"tg{n_tokens}, repetition {i + 1} of {repetitions}")
        samples.append(_answer(client, 4, n_tokens + 1).decoding)  # the first token is the prompt's
    return _row(f"tg{n_tokens}", len(status.nodes), samples)


class _Answer(Struct):
    """The number of tokens of the prompt, and the sums of its steps and of decoding."""

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
        elif isinstance(event, TokenText) and event.figures is not None:
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
