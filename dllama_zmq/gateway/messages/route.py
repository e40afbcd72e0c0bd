"""POST /v1/messages and /v1/messages/count_tokens, built on the answers of chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from dllama_zmq.bus.client_messages import Started
from dllama_zmq.chat import Delta
from dllama_zmq.gateway.answer_stream import End, Output
from dllama_zmq.gateway.chat import Answer, Collected, answer_of, collected, n_prompt_tokens
from dllama_zmq.gateway.endpoint import Call, ErrorForm, Reply, Stream
from dllama_zmq.gateway.messages.replies import (
    AnswerBlock,
    BlockDelta,
    BlockStart,
    BlockStop,
    CountReply,
    ErrorReply,
    InputDelta,
    MessageDelta,
    MessageReply,
    MessageStart,
    MessageStop,
    SignatureDelta,
    Stopped,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    Usage,
    event,
)
from dllama_zmq.gateway.messages.requests import CountRequest, MessagesRequest, as_chat
from dllama_zmq.gateway.replies import new_id

ERRORS = ErrorForm(ErrorReply.of, lambda problem: event(ErrorReply.of(problem)), ErrorReply)


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
                yield event(MessageStart(begun))
            elif isinstance(one, Output):
                for delta in one.deltas:
                    yield blocks.take(delta)
            elif isinstance(one, End):
                yield blocks.stop()
                yield event(MessageDelta(Stopped.of(one.reason, one.stop), Usage.of(tally)))
                yield event(MessageStop())


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
                events += self._start(ToolUseBlock(delta.tool.id, delta.tool.name))
            new: TextDelta | ThinkingDelta | InputDelta = InputDelta(delta.tool.arguments)
        elif delta.reasoning:
            if not isinstance(self._open, ThinkingBlock):
                events += self._start(ThinkingBlock())
            new = ThinkingDelta(delta.reasoning)
        else:
            if not isinstance(self._open, TextBlock):
                events += self._start(TextBlock())
            new = TextDelta(delta.content)
        return events + event(BlockDelta(self._index, new))

    def stop(self) -> bytes:
        """The end of the open block, if there is one."""
        if self._open is None:
            return b""
        events = event(BlockDelta(self._index, SignatureDelta())) if isinstance(self._open, ThinkingBlock) else b""
        self._open = None
        return events + event(BlockStop(self._index))

    def _start(self, block: AnswerBlock) -> bytes:
        events = self.stop()
        self._index, self._open = self._index + 1, block
        return events + event(BlockStart(self._index, block))
