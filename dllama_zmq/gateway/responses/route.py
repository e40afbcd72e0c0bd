"""POST /v1/responses, built on the answers of chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from dllama_zmq.bus.client_messages import Started
from dllama_zmq.chat import Delta
from dllama_zmq.gateway.answer_stream import End, Output
from dllama_zmq.gateway.chat import Answer, answer_of, n_prompt_tokens
from dllama_zmq.gateway.endpoint import Call, Reply, Stream
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.replies import InputTokens, TokenLogprob
from dllama_zmq.gateway.responses.events import Items
from dllama_zmq.gateway.responses.replies import ResponseReply, response_to
from dllama_zmq.gateway.responses.requests import ResponsesRequest, as_chat


async def responses(call: Call[ResponsesRequest]) -> Reply | Stream:
    """The response to a conversation."""
    answer = await answer_of(call, as_chat(call.body))
    response, items = response_to(call.body, answer.model, answer.created), Items()
    events = _events(answer, response, items)
    if call.body.stream:
        return Stream(_with_error(events, items))
    async with aclosing(events):
        async for _ in events:
            pass
    return Reply(response)


async def input_tokens(call: Call[ResponsesRequest]) -> Reply:
    """The number of tokens of a conversation's prompt."""
    return Reply(InputTokens(await n_prompt_tokens(call, as_chat(call.body))))


async def _events(answer: Answer, response: ResponseReply, items: Items) -> AsyncGenerator[bytes, None]:
    """The events of a response; the last one has the whole response."""
    async with aclosing(answer.events) as events:
        async for one in events:
            if isinstance(one, Started):
                yield items.response("created", response)
                yield items.response("in_progress", response)
            elif isinstance(one, Output):
                logprobs = [TokenLogprob.of(token) for token in one.logprobs]
                for delta in one.deltas or [Delta()]:
                    yield items.take(delta, logprobs)
                    logprobs = []
            elif isinstance(one, End):
                is_cut = one.reason == "length"
                yield items.close(is_cut)
                response.end(items.done, answer.tally, is_cut)
                yield items.response(response.status, response)


async def _with_error(events: AsyncGenerator[bytes, None], items: Items) -> AsyncGenerator[bytes, None]:
    """The events; an error in mid-stream becomes the last event. Raises an error that occurs before the first event."""
    has_begun = False
    try:
        async with aclosing(events):
            async for data in events:
                has_begun = True
                yield data
    except Exception as error:
        if not has_begun:
            raise
        yield items.error(Problem.of(error))
