"""The n answers to one prompt as events, which each API puts into its own form. Closing it cancels the request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from dllama_zmq.bus.client_messages import Done, Generate, Logprob, Prefill, Queued, Started, TokenText
from dllama_zmq.chat import Delta
from dllama_zmq.client import SILENCE_S
from dllama_zmq.errors import RootLost
from dllama_zmq.gateway.link import Link, Mailbox
from dllama_zmq.gateway.metrics import Metrics, Tally
from dllama_zmq.gateway.problems import not_ready

Reason = Literal["stop", "length", "tool_calls"]


class Parser(Protocol):
    """What reads an answer: an AnswerParser, or a parser of plain text."""

    @property
    def has_calls(self) -> bool: ...

    def push(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """The request waits for `ahead` others, or, in mid-answer, for the cluster to be ready again, as `note` says."""

    ahead: int
    note: str


@dataclass(frozen=True, slots=True)
class Begin:
    """The prompt has n_prompt tokens; the answer of index i uses the seed `seed` + i."""

    n_prompt: int
    seed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` prompt tokens are evaluated, `n_cached` of them from the cache. seconds: since the start."""

    done: int
    total: int
    n_cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Output:
    """More of the answer `index`: parsed deltas, and the log-probabilities of its tokens if they were requested."""

    index: int
    deltas: Sequence[Delta]
    logprobs: Sequence[Sequence[Logprob]] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The end of the answer `index`. stop: the stop string that ended it, "" if none did."""

    index: int
    reason: Reason
    stop: str = ""


Event = Waiting | Begin | Progress | Output | End


@dataclass(slots=True)
class _Answer:
    """One of the n answers: its parser, and log-probabilities that wait for the next event."""

    parser: Parser
    logprobs: list[Sequence[Logprob]] = field(default_factory=list)

    def output(self, index: int, deltas: Sequence[Delta], at_end: bool = False) -> Output | None:
        """What is new, if anything is. Log-probabilities go with the text that they belong to."""
        if not deltas and not (at_end and self.logprobs):
            return None
        logprobs, self.logprobs = self.logprobs, []
        return Output(index, deltas, logprobs)


@dataclass(frozen=True, slots=True)
class AnswerStream:
    """Sends a request to the front over `link`. parser: makes the parser for a prompt that ends with the given text."""

    link: Link
    parser: Callable[[str], Parser]
    metrics: Metrics

    async def events(self, request: Generate, tally: Tally) -> AsyncGenerator[Event, None]:
        """The events of `request`, whose id is set here. Keeps `tally` up to date.

        Raises Problem if nodes are missing when the request arrives, and the errors of `Client.generate`.
        """
        n_open, answers, silence_s = request.n, list[_Answer](), SILENCE_S
        make = lambda number: msgspec.structs.replace(request, id=number)  # noqa: E731
        with self.metrics.request(tally) as outcome:
            async with self.link.request(make, cancels=True) as mailbox:
                while n_open:
                    message = await _next(mailbox, silence_s)
                    if isinstance(message, TokenText):
                        self.metrics.token(tally)
                        answer = answers[message.index]
                        if message.logprobs:
                            answer.logprobs.append(message.logprobs)
                        if output := answer.output(message.index, answer.parser.push(message.text)):
                            yield output
                    elif isinstance(message, Done):
                        n_open -= 1
                        mailbox.open = n_open > 0
                        answer = answers[message.index]
                        deltas = [*answer.parser.push(message.text), *answer.parser.finish()]
                        if output := answer.output(message.index, deltas, at_end=True):
                            yield output
                        calls = answer.parser.has_calls and message.reason == "stop"
                        cut = message.reason == "length"
                        reason: Reason = "tool_calls" if calls else "length" if cut else "stop"
                        outcome.reasons.append(reason)
                        yield End(message.index, reason, message.stop)
                    elif isinstance(message, Prefill):
                        tally.n_cached = message.cached_tokens
                        seconds = time.monotonic() - tally.began
                        yield Progress(message.done, message.total, message.cached_tokens, seconds)
                    elif isinstance(message, Started):
                        tally.began, tally.n_prompt, tally.seed = time.monotonic(), message.prompt_tokens, message.seed
                        answers = [_Answer(self.parser(message.prompt_end)) for _ in range(request.n)]
                        silence_s = max(SILENCE_S, message.silence_s)
                        yield Begin(message.prompt_tokens, message.seed)
                    elif isinstance(message, Queued):
                        if message.note and not answers:
                            raise not_ready(message.note)
                        silence_s = max(SILENCE_S, message.silence_s)
                        yield Waiting(message.ahead, message.note)


async def _next(mailbox: Mailbox, silence_s: float) -> object:
    """The next message. Raises RootLost if none arrives within `silence_s`."""
    message = await mailbox.get(silence_s)
    if message is None:
        raise RootLost(f"no message from the root for {silence_s:.0f} s: it is in a long step, or stuck")
    return message
