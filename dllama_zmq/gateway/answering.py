"""One answer, or n to one prompt, as events that every dialect gives its own form. Closing it cancels the request."""

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
    """What an answer means: an AnswerParser, or one that takes it as it is."""

    @property
    def has_calls(self) -> bool: ...

    def push(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """`ahead` other requests are answered first; or the cluster forms again in mid-answer, as `note` says."""

    ahead: int
    note: str


@dataclass(frozen=True, slots=True)
class Began:
    """The prompt has so many tokens; the answer of index i is that of `seed` plus i."""

    n_prompt: int
    seed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """So many of the prompt's tokens are evaluated; `n_cached` of them were before. seconds: since it began."""

    done: int
    total: int
    n_cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Said:
    """More of the answer `index`: what it means, and the tokens since the last time, if they are asked for."""

    index: int
    deltas: Sequence[Delta]
    logprobs: Sequence[Sequence[Logprob]] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of the answer `index`; stop: the stop string that it ends before, "" if it is none that ended it."""

    index: int
    reason: Reason
    stop: str = ""


Event = Waiting | Began | Progress | Said | Ended


@dataclass(slots=True)
class _Answer:
    """One of the n: its parser, and what waits for the next event."""

    parser: Parser
    logprobs: list[Sequence[Logprob]] = field(default_factory=list)

    def said(self, index: int, deltas: Sequence[Delta], at_end: bool = False) -> Said | None:
        """What is new, if anything is. Log-probabilities go with the text that they belong to."""
        if not deltas and not (at_end and self.logprobs):
            return None
        logprobs, self.logprobs = self.logprobs, []
        return Said(index, deltas, logprobs)


@dataclass(frozen=True, slots=True)
class Answering:
    """Asks the front over `link`. parser: of an answer to a prompt that ends so."""

    link: Link
    parser: Callable[[str], Parser]
    metrics: Metrics

    async def events(self, asked: Generate, tally: Tally) -> AsyncGenerator[Event, None]:
        """The events of the request `asked`, whose id is set here; `tally` is kept up to date.

        Raises Problem where nodes are missing when it comes, and the errors of `Client.generate`.
        """
        n_open, answers, silence_s = asked.n, list[_Answer](), SILENCE_S
        make = lambda number: msgspec.structs.replace(asked, id=number)  # noqa: E731
        with self.metrics.request(tally) as outcome:
            async with self.link.request(make, cancels=True) as mailbox:
                while n_open:
                    message = await _next(mailbox, silence_s)
                    if isinstance(message, TokenText):
                        self.metrics.token(tally)
                        answer = answers[message.index]
                        if message.logprobs:
                            answer.logprobs.append(message.logprobs)
                        if said := answer.said(message.index, answer.parser.push(message.text)):
                            yield said
                    elif isinstance(message, Done):
                        n_open -= 1
                        mailbox.open = n_open > 0
                        answer = answers[message.index]
                        deltas = [*answer.parser.push(message.text), *answer.parser.finish()]
                        if said := answer.said(message.index, deltas, at_end=True):
                            yield said
                        calls = answer.parser.has_calls and message.reason == "stop"
                        cut = message.reason == "length"
                        reason: Reason = "tool_calls" if calls else "length" if cut else "stop"
                        outcome.reasons.append(reason)
                        yield Ended(message.index, reason, message.stop)
                    elif isinstance(message, Prefill):
                        tally.n_cached = message.cached_tokens
                        seconds = time.monotonic() - tally.began
                        yield Progress(message.done, message.total, message.cached_tokens, seconds)
                    elif isinstance(message, Started):
                        tally.began, tally.n_prompt, tally.seed = time.monotonic(), message.prompt_tokens, message.seed
                        answers = [_Answer(self.parser(message.prompt_end)) for _ in range(asked.n)]
                        silence_s = max(SILENCE_S, message.silence_s)
                        yield Began(message.prompt_tokens, message.seed)
                    elif isinstance(message, Queued):
                        if message.note and not answers:
                            raise not_ready(message.note)
                        silence_s = max(SILENCE_S, message.silence_s)
                        yield Waiting(message.ahead, message.note)


async def _next(mailbox: Mailbox, silence_s: float) -> object:
    """The next message. Raises RootLost where none comes for `silence_s`."""
    message = await mailbox.get(silence_s)
    if message is None:
        raise RootLost(f"the root has said nothing for {silence_s:.0f} s: it is in a long step, or hangs")
    return message
