"""The events of a streamed response: each item is added, grows and is done before the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import json

from dllama_zmq.chat import Delta
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.replies import TokenLogprob, item_id
from dllama_zmq.gateway.responses.replies import (
    CallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseReply,
)


class Items:
    """The items of a response as they grow. Every method returns the events of the change."""

    def __init__(self) -> None:
        self.done: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._number = -1

    def response(self, kind: str, response: ResponseReply) -> bytes:
        """The state of the whole response."""
        return self._event(f"response.{kind}", response=response)

    def error(self, problem: Problem) -> bytes:
        """The error that ends the stream."""
        return self._event("error", code=problem.kind, message=str(problem), param=problem.param)

    def take(self, delta: Delta, logprobs: Sequence[TokenLogprob]) -> bytes:
        """The events for new text, thinking or a call."""
        if delta.tool is not None:
            added = b""
            if delta.tool.id:
                added = self._add(CallItem(item_id("fc"), delta.tool.id, delta.tool.name))
            assert isinstance(self._open, CallItem)
            self._open.arguments += delta.tool.arguments
            return added + self._grow("response.function_call_arguments.delta", delta=delta.tool.arguments)
        if delta.reasoning:
            added = b"" if isinstance(self._open, ReasoningItem) else self._add(ReasoningItem(item_id("rs")))
            assert isinstance(self._open, ReasoningItem)
            self._open.content[0].text += delta.reasoning
            return added + self._grow("response.reasoning_text.delta", content_index=0, delta=delta.reasoning)
        added = b"" if isinstance(self._open, MessageItem) else self._add(MessageItem(item_id("msg")))
        assert isinstance(self._open, MessageItem)
        self._open.content[0].text += delta.content
        self._open.content[0].logprobs += logprobs
        return added + self._grow(
            "response.output_text.delta", content_index=0, delta=delta.content, logprobs=list(logprobs)
        )

    def close(self, is_cut: bool = False) -> bytes:
        """The end of the open item, if there is one."""
        item = self._open
        if item is None:
            return b""
        events = b""
        if isinstance(item, CallItem):
            events = self._grow("response.function_call_arguments.done", arguments=item.arguments)
        elif isinstance(item, MessageItem):
            part: OutputText | ReasoningText = item.content[0]
            events = self._grow(
                "response.output_text.done", content_index=0, text=part.text, logprobs=item.content[0].logprobs
            ) + self._grow("response.content_part.done", content_index=0, part=part)
        else:
            part = item.content[0]
            events = self._grow("response.reasoning_text.done", content_index=0, text=part.text) + self._grow(
                "response.content_part.done", content_index=0, part=part
            )
        item.status = "incomplete" if is_cut else "completed"
        events += self._event("response.output_item.done", output_index=len(self.done), item=item)
        self.done.append(item)
        self._open = None
        return events

    def _add(self, item: OutputItem) -> bytes:
        events = self.close()
        self._open = item
        events += self._event("response.output_item.added", output_index=len(self.done), item=item)
        if isinstance(item, MessageItem):
            item.content.append(OutputText())
            events += self._grow("response.content_part.added", content_index=0, part=item.content[0])
        elif isinstance(item, ReasoningItem):
            item.content.append(ReasoningText())
            events += self._grow("response.content_part.added", content_index=0, part=item.content[0])
        return events

    def _grow(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(kind, item_id=self._open.id, output_index=len(self.done), **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = json.encode({"type": kind, "sequence_number": self._number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
