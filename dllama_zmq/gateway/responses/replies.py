"""The answers of /v1/responses: a response of items."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from dllama_zmq.gateway.metrics import Tally
from dllama_zmq.gateway.replies import TokenLogprob, new_id
from dllama_zmq.gateway.responses.requests import FunctionTool, Reasoning, ResponsesRequest, TextFormat, ToolChoice


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str = ""


class MessageItem(Struct, tag_field="type", tag="message"):
    """The text of the model."""

    id: str
    content: list[OutputText] = field(default_factory=list)
    status: str = "in_progress"
    role: str = "assistant"


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    """The model's thinking, complete: there is no summary."""

    id: str
    content: list[ReasoningText] = field(default_factory=list)
    status: str = "in_progress"
    summary: list[Any] = field(default_factory=list)


class CallItem(Struct, tag_field="type", tag="function_call"):
    """A function call of the model."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: str = "in_progress"


OutputItem = MessageItem | ReasoningItem | CallItem


class InputDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct):
    """Thinking tokens are not counted separately."""

    reasoning_tokens: int = 0


class Usage(Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @classmethod
    def of(cls, tally: Tally) -> Usage:
        """The usage of one request."""
        n_prompt, n = tally.n_prompt, tally.n_tokens
        return cls(n_prompt, InputDetails(tally.n_cached), n, OutputDetails(), n_prompt + n)


class Incomplete(Struct):
    reason: str


class TextConfig(Struct):
    format: TextFormat


class ResponseReply(Struct):
    """The response, with the fields that it repeats from the request."""

    id: str
    created_at: int
    model: str
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: Reasoning
    temperature: float | None
    text: TextConfig
    tool_choice: str | ToolChoice
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float | None
    user: str | None
    output: list[OutputItem] = field(default_factory=list)
    status: str = "in_progress"
    usage: Usage | None = None
    error: None = None
    incomplete_details: Incomplete | None = None
    background: bool = False
    previous_response_id: None = None
    truncation: str = "disabled"
    object: str = "response"

    def end(self, output: list[OutputItem], tally: Tally, is_cut: bool) -> None:
        """Complete the response; is_cut: the token limit ended it."""
        self.output, self.usage = output, Usage.of(tally)
        self.status = "incomplete" if is_cut else "completed"
        self.incomplete_details = Incomplete("max_output_tokens") if is_cut else None


def response_to(body: ResponsesRequest, model: str, created: int) -> ResponseReply:
    """A response at its start."""
    form = body.text.format if body.text is not None else None
    return ResponseReply(
        id=new_id("resp_"),
        created_at=created,
        model=model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=body.reasoning or Reasoning(),
        temperature=body.temperature,
        text=TextConfig(form or TextFormat("text")),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=body.top_p,
        user=body.user,
    )
