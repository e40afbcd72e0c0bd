"""POST /v1/messages and /v1/messages/count_tokens, built on the answers of chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from dllama_zmq.bus.client_messages import Started
from dllama_zmq.chat import Delta
from dllama_zmq.gateway.answer_stream import End, Output
from dllama_zmq.gateway.chat import Answer, Collected, answer_of, collected, n_prompt_tokens
from dllama_zmq.gateway.endpoint import Call, ErrorForm, Reply, Stream, named_event
from dllama_zmq.gateway.messages.replies import (
    AnswerBlock,
    CountReply,
    ErrorReply,
    MessageReply,
    Stopped,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    Usage,
)
from dllama_zmq.gateway.messages.requests import CountRequest, MessagesRequest, as_chat
from dllama_zmq.gateway.replies import new_id

ERRORS = ErrorForm(ErrorReply.of, lambda problem: named_event("error", error=ErrorReply.of(problem).error), ErrorReply)


async def messages(call: Call[MessagesRequest]) -> Reply | Stream:
    """The next message of a conversation."""
    answer = await answer_of(call, as_chat(call.body))
    if call.body.stream:
        return Stream(_events(answer))
    (whole,) = await collected(answer)
    end = Stopped.of(whole.reason, whole.stop)
    usage, blocks = Usage.of(answer.tally), _blocks(whole)
    return Reply(MessageReply(new_id("msg_"), answer.model, blocks, end.stop_reason, usage, end.stop_sequence))


async def count_tokens(call: Call[CountRequest]) -> Reply:
    """The number of tokens of a conversation's prompt."""
    return Reply(CountReply(await n_prompt_tokens(call, as_chat(call.body))))


def _blocks(whole: Collected) -> list[AnswerBlock]:
    thoughts, text = "".join(whole.reasoning), "".join(whole.content)
    calls = [ToolUseBlock(one.id, one.function.name, _input(one.function.arguments)) for one in whole.calls]
    return [*([ThinkingBlock(thoughts)] if thoughts else []), *([TextBlock(text)] if text else []), *calls]


def _input(arguments: str) -> dict[str, object]:
    """The arguments as an object; empty if they are not a complete JSON object because the answer was cut."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


async def _events(answer: Answer) -> AsyncGenerator[bytes, None]:
    """The events of a message: each block starts, grows and stops before the next one."""
    blocks, tally = _Blocks(), answer.tally
    async with aclosing(answer.events) as events:
        async for one in events:
            if isinstance(one, Started):
                begun = MessageReply(new_id("msg_"), answer.model, [], None, Usage.of(tally))
                yield named_event("message_start", message=begun)
            elif isinstance(one, Output):
                for delta in one.deltas:
                    yield blocks.take(delta)
            elif isinstance(one, End):
                yield blocks.stop()
                end = Stopped.of(one.reason, one.stop)
                yield named_event("message_delta", delta=end, usage=Usage.of(tally)) + named_event("message_stop")


class _Blocks:
    """The blocks of a streamed message."""

    def __init__(self) -> None:
        self._index = -1
        self._open: AnswerBlock | None = None

    def take(self, delta: Delta) -> bytes:
        """The events for new text, thinking or a call."""
        events = b""
        if delta.tool is not None:
            if delta.tool.id:
                events = self._start(ToolUseBlock(delta.tool.id, delta.tool.name))
            return events + self._grow("input_json_delta", partial_json=delta.tool.arguments)
        if delta.reasoning:
            if not isinstance(self._open, ThinkingBlock):
                events = self._start(ThinkingBlock())
            return events + self._grow("thinking_delta", thinking=delta.reasoning)
        if not isinstance(self._open, TextBlock):
            events = self._start(TextBlock())
        return events + self._grow("text_delta", text=delta.content)

    def stop(self) -> bytes:
        """The end of the open block, if there is one."""
        if self._open is None:
            return b""
        events = self._grow("signature_delta", signature="") if isinstance(self._open, ThinkingBlock) else b""
        self._open = None
        return events + named_event("content_block_stop", index=self._index)

    def _start(self, block: AnswerBlock) -> bytes:
        events = self.stop()
        self._index, self._open = self._index + 1, block
        return events + named_event("content_block_start", index=self._index, content_block=block)

    def _grow(self, kind: str, **fields: str) -> bytes:
        return named_event("content_block_delta", index=self._index, delta={"type": kind, **fields})
