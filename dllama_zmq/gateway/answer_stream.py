"""The n answers to one prompt as events, which each API puts into its own form. Closing it cancels the request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Literal

from msgspec import Struct, field

from dllama_zmq.bus.client_messages import Done, Generate, Logprob, Prefill, Queued, Started, TokenText
from dllama_zmq.chat import AnswerParser, Delta
from dllama_zmq.gateway.metrics import Tally
from dllama_zmq.gateway.service import Service

Reason = Literal["stop", "length", "tool_calls"]


class PlainText:
    """The parser for plain text: every text is content."""

    has_calls = False

    def push(self, text: str) -> list[Delta]:
        return [Delta(content=text)] if text else []

    def finish(self) -> list[Delta]:
        return []


class Output(Struct, frozen=True):
    """More of the answer `index`: parsed deltas, and the log-probabilities of its tokens if they were requested."""

    index: int
    deltas: Sequence[Delta]
    logprobs: Sequence[Sequence[Logprob]] = ()


class End(Struct, frozen=True):
    """The end of the answer `index`. stop: the stop string that ended it, "" if none did."""

    index: int
    reason: Reason
    stop: str = ""


Event = Queued | Started | Prefill | Output | End
"""The front's own words before an answer's first token, then those of the answers."""


class _Answer(Struct):
    """One of the n answers: its parser, and log-probabilities that wait for the next event."""

    parser: AnswerParser | PlainText
    logprobs: list[Sequence[Logprob]] = field(default_factory=list)


async def answer_events(
    service: Service,
    user: str,
    request: Generate,
    parser: Callable[[str], AnswerParser | PlainText],
    tally: Tally,
) -> AsyncGenerator[Event, None]:
    """The events of `request`. Keeps `tally` up to date. Raises the errors of `Service.follow`.

    parser: makes the parser for a prompt that ends with the given text.
    """
    answers: list[_Answer] = []
    with service.metrics.request(tally) as reasons:
        async with aclosing(service.follow(user, request)) as messages:
            async for message in messages:
                if isinstance(message, TokenText | Done):
                    answer = answers[message.index]
                    deltas = answer.parser.push(message.text)
                    if isinstance(message, Done):
                        deltas += answer.parser.finish()
                    else:
                        service.metrics.token(tally)
                        answer.logprobs += [message.logprobs] if message.logprobs else []
                    if deltas or (isinstance(message, Done) and answer.logprobs):
                        # Log-probabilities go with the text that they belong to.
                        yield Output(message.index, deltas, answer.logprobs)
                        answer.logprobs = []
                    if isinstance(message, Done):
                        reason = _reason(message, answer.parser.has_calls)
                        reasons.append(reason)
                        yield End(message.index, reason, message.stop)
                elif isinstance(message, Queued | Started | Prefill):
                    if isinstance(message, Started):
                        tally.began, tally.n_prompt = time.monotonic(), message.prompt_tokens
                        answers = [_Answer(parser(message.prompt_end)) for _ in range(request.n)]
                    elif isinstance(message, Prefill):
                        tally.n_cached = message.cached_tokens
                    yield message


def _reason(end: Done, has_calls: bool) -> Reason:
    if end.reason == "length":
        return "length"
    return "tool_calls" if has_calls and end.reason == "stop" else "stop"
