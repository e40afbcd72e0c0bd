"""The events of a streamed response: each item is added, grows and is done before the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllama_zmq.chat import Delta
from dllama_zmq.gateway.endpoint import named_event
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.replies import TokenLogprob, new_id
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
        added = b""
        if delta.tool is not None:
            if delta.tool.id:
                added = self._add(CallItem(new_id("fc_"), delta.tool.id, delta.tool.name))
            assert isinstance(self._open, CallItem)
            self._open.arguments += delta.tool.arguments
            return added + self._grow("function_call_arguments.delta", delta=delta.tool.arguments)
        kind, prefix = (ReasoningItem, "rs_") if delta.reasoning else (MessageItem, "msg_")
        if not isinstance(self._open, kind):
            added = self._add(kind(new_id(prefix)))
        assert isinstance(self._open, ReasoningItem | MessageItem)
        part, text = self._open.content[0], delta.reasoning or delta.content
        part.text += text
        if isinstance(part, ReasoningText):
            return added + self._grow("reasoning_text.delta", content_index=0, delta=text)
        part.logprobs += logprobs
        return added + self._grow("output_text.delta", content_index=0, delta=text, logprobs=list(logprobs))

    def close(self, is_cut: bool = False) -> bytes:
        """The end of the open item, if there is one."""
        item = self._open
        if item is None:
            return b""
        if isinstance(item, CallItem):
            events = self._grow("function_call_arguments.done", arguments=item.arguments)
        else:
            part = item.content[0]
            if isinstance(part, ReasoningText):
                events = self._grow("reasoning_text.done", content_index=0, text=part.text)
            else:
                events = self._grow("output_text.done", content_index=0, text=part.text, logprobs=part.logprobs)
            events += self._grow("content_part.done", content_index=0, part=part)
        item.status = "incomplete" if is_cut else "completed"
        events += self._event("response.output_item.done", output_index=len(self.done), item=item)
        self.done.append(item)
        self._open = None
        return events

    def _add(self, item: OutputItem) -> bytes:
        """The events of a new item, and of its part if it is of text. It is shown without the part first."""
        events = self.close()
        self._open = item
        events += self._event("response.output_item.added", output_index=len(self.done), item=item)
        if not isinstance(item, CallItem):
            part = ReasoningText() if isinstance(item, ReasoningItem) else OutputText()
            item.content.append(part)  # type: ignore[arg-type]
            events += self._grow("content_part.added", content_index=0, part=part)
        return events

    def _grow(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(f"response.{kind}", item_id=self._open.id, output_index=len(self.done), **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return named_event(kind, sequence_number=self._number, **fields)
