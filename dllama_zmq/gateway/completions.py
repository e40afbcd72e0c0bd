"""POST /v1/completions: continues texts or token ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from dllama_zmq.bus.client_messages import Logprob, Started
from dllama_zmq.bus.prompts import prompt_on_wire
from dllama_zmq.bus.text_messages import Detokenize, Detokenized
from dllama_zmq.gateway import sampling_params
from dllama_zmq.gateway.answer_stream import End, Event, Output, PlainText, answer_events
from dllama_zmq.gateway.chat import DONE, Collected, progress
from dllama_zmq.gateway.endpoint import Call, Reply, Stream, event
from dllama_zmq.gateway.metrics import Tally
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.replies import CompletionChoice, CompletionLogprobs, CompletionReply, Timings, Usage, new_id
from dllama_zmq.gateway.requests import CompletionRequest, prompts_of

Numbered = tuple[int, Event]


async def completions(call: Call[CompletionRequest]) -> Reply | Stream:
    """The continuations of the prompts: n for each, those of the first prompt first."""
    body, service = call.body, call.service
    prompts = prompts_of(body.prompt, "prompt")
    _check(body)
    model = await service.model()
    limits = service.settings.limits
    n, tallies = body.n or 1, [Tally() for _ in prompts]
    requests = [
        sampling_params.generate_message(body, prompt_on_wire(prompt), limits, body.logprobs) for prompt in prompts
    ]
    echoes = [await _echo(call, prompt) if body.echo else "" for prompt in prompts]
    events = [
        answer_events(service, call.user, request, lambda prompt_end: PlainText(), tally)
        for request, tally in zip(requests, tallies, strict=True)
    ]
    head = CompletionReply(new_id("cmpl-"), int(time.time()), model.name, [])
    if body.stream:
        return Stream(_chunks(_merged(events), head, tallies, body, echoes))
    answers = [Collected() for _ in range(n * len(prompts))]
    async with aclosing(_merged(events)) as merged:
        async for place, one in merged:
            if isinstance(one, Output | End):
                answers[place * n + one.index].add(one)
    choices = [_choice(index, answer, echoes[index // n]) for index, answer in enumerate(answers)]
    timings = Timings.of(tallies[0]) if len(tallies) == 1 else UNSET
    return Reply(CompletionReply(head.id, head.created, head.model, choices, usage=Usage.of(tallies), timings=timings))


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise Problem(400, "suffix: this server cannot fill in the middle", "suffix")
    if body.echo and body.logprobs is not None:
        raise Problem(400, "echo with logprobs: this server has no log-probabilities of prompt tokens", "logprobs")
    if body.best_of not in (None, 1, body.n):
        raise Problem(400, f"best_of is {body.best_of}; this server does not rank answers; leave it out", "best_of")


async def _echo(call: Call[CompletionRequest], prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return (await call.service.ask(call.user, Detokenize(1, prompt), Detokenized)).text


def _choice(index: int, answer: Collected, echo: str) -> CompletionChoice:
    logprobs = _logprobs(answer.logprobs, len(echo)) if answer.logprobs else None
    return CompletionChoice(index, echo + "".join(answer.content), answer.reason, logprobs)


def _logprobs(logprobs: Sequence[Sequence[Logprob]], offset: int) -> CompletionLogprobs:
    """The log-probabilities of some tokens; the first token begins at character `offset` of the text."""
    found = CompletionLogprobs([], [], [], [])
    for own, *tops in logprobs:
        found.tokens.append(own.text)
        found.token_logprobs.append(own.logprob)
        found.top_logprobs.append({one.text: one.logprob for one in tops} or {own.text: own.logprob})
        found.text_offset.append(offset)
        offset += len(own.text)
    return found


async def _chunks(
    events: AsyncGenerator[Numbered, None],
    head: CompletionReply,
    tallies: Sequence[Tally],
    body: CompletionRequest,
    echoes: Sequence[str],
) -> AsyncGenerator[bytes, None]:
    n = body.n or 1
    offsets = [len(echo) for echo in echoes for _ in range(n)]

    def chunk(*choices: CompletionChoice, **more: Any) -> bytes:
        return event(CompletionReply(head.id, head.created, head.model, list(choices), **more))

    async with aclosing(events) as stream:
        async for place, one in stream:
            if isinstance(one, Output):
                index, text = place * n + one.index, "".join(delta.content for delta in one.deltas)
                logprobs = _logprobs(one.logprobs, offsets[index]) if one.logprobs else None
                offsets[index] += len(text)
                more = {"timings": Timings.of(tallies[place])} if body.timings_per_token else {}
                yield chunk(CompletionChoice(index, text, None, logprobs), **more)
            elif isinstance(one, Started) and echoes[place]:
                for index in range(place * n, place * n + n):
                    yield chunk(CompletionChoice(index, echoes[place], None))
            elif isinstance(one, End):
                end = CompletionChoice(place * n + one.index, "", one.reason)
                yield chunk(end, timings=Timings.of(tallies[place]))
            elif body.return_progress and not isinstance(one, Started):
                yield chunk(**progress(one, tallies[place]))
    if body.stream_options is not None and body.stream_options.include_usage:
        yield chunk(usage=Usage.of(tallies))
    yield DONE


async def _merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Numbered, None]:
    """The events of all streams as they come, each with its stream's number. If one fails, all end."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for one in events:
                yield 0, one
        return
    queue: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump(place: int, stream: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(stream) as events:
                async for one in events:
                    await queue.put((place, one))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    n_open = len(tasks)
    try:
        while n_open:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                n_open -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
