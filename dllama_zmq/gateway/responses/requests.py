"""The requests of /v1/responses, translated to chat requests. Knows no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.requests import (
    Called,
    ChatRequest,
    Function,
    JsonSchema,
    Message,
    Named,
    NamedTool,
    Options,
    Part,
    ResponseFormat,
    Signature,
    Tool,
    given,
    text_of,
)

LOGPROBS = "message.output_text.logprobs"
"""In `include`: return the log-probabilities of the answer's tokens."""


class Item(Struct):
    """An earlier item of the conversation: a message, function_call, function_call_output or reasoning."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class FunctionTool(Struct, omit_defaults=True):
    """A function of the client."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Struct, omit_defaults=True):
    """type function: the function that must be called. allowed_tools: `mode` applies to these tools only."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[FunctionTool] | None = None


class TextFormat(Struct, omit_defaults=True):
    """The form that the answer's text must have."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Text(Struct):
    format: TextFormat | None = None


class Reasoning(Struct):
    """Whether the model thinks first, if its template has a switch; effort "none": it does not."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Options, kw_only=True):
    """The body of POST /v1/responses: its own options, and those of chat completions."""

    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = None
    truncation: str | None = None


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """The request in the form of chat completions. Raises Problem for what this server does not support."""
    _require_stateless(body)
    tools = [_tool(tool, place) for place, tool in enumerate(body.tools or [])]
    choice, tools = _choice(body.tool_choice, tools)
    options = {name: getattr(body, name) for name in Options.__struct_fields__}
    request = ChatRequest(
        **options | {"n": 1},
        messages=[*([Message("system", body.instructions)] if body.instructions else []), *_messages(body.input)],
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        max_completion_tokens=body.max_output_tokens,
        logprobs=LOGPROBS in (body.include or ()),
        top_logprobs=body.top_logprobs,
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        chat_template_kwargs=body.chat_template_kwargs,
        add_generation_prompt=True,
    )
    form = body.text.format if body.text is not None else None
    if form is not None and form.type != "text":
        if form.type == "json_schema" and form.schema is None:
            raise Problem(400, "text.format.schema is missing", "text.format")
        request.response_format = ResponseFormat(form.type, JsonSchema(form.schema) if form.schema else None)
    return request


def _require_stateless(body: ResponsesRequest) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise Problem(400, f"{name}: this server stores nothing; send the whole conversation as input", name)
    if body.background:
        raise Problem(400, "background: this server answers in the request itself, whole or as a stream", "background")


def _messages(items: str | Sequence[Item]) -> list[Message]:
    """The conversation. A call belongs to the assistant's message before it, reasoning to the message after it."""
    if isinstance(items, str):
        return [Message("user", items)]
    messages: list[Message] = []
    thoughts: str | None = None
    for place, item in enumerate(items):
        where = f"input[{place}]"
        kind = item.type or "message"
        if kind == "reasoning":
            thoughts = text_of(item.content or item.summary or "", where) or None
        elif kind == "message":
            if item.role is None:
                raise Problem(400, f"{where}.role is missing", where)
            own = thoughts if item.role == "assistant" else None
            messages.append(Message(item.role, text_of(item.content or "", where), reasoning_content=own))
            thoughts = None
        elif kind == "function_call":
            if not messages or messages[-1].role != "assistant":
                messages.append(Message("assistant", reasoning_content=thoughts))
                thoughts = None
            function = Function(given(item.name, where, "name"), given(item.arguments, where, "arguments"))
            call = Called(function, given(item.call_id, where, "call_id"))
            messages[-1].tool_calls = [*(messages[-1].tool_calls or []), call]
        elif kind == "function_call_output":
            text = text_of(item.output or "", where)
            messages.append(Message("tool", text, tool_call_id=given(item.call_id, where, "call_id")))
        else:
            raise Problem(
                400,
                f"{where}: an item of type {kind:.40}; this server reads message, function_call, "
                "function_call_output and reasoning",
                where,
            )
    return messages


def _tool(tool: FunctionTool, place: int) -> Tool:
    if tool.type != "function":
        raise Problem(
            400, f"tools[{place}]: a tool of type {tool.type:.40}; this server calls functions of the client", "tools"
        )
    name = given(tool.name, f"tools[{place}]", "name")
    return Tool(Signature(name, tool.description, tool.parameters, tool.strict))


def _choice(
    choice: str | ToolChoice | None, tools: list[Tool]
) -> tuple[Literal["auto", "none", "required"] | NamedTool | None, list[Tool]]:
    """How tools are to be called, and which tools."""
    if not isinstance(choice, ToolChoice):
        return choice, tools  # type: ignore[return-value]
    if choice.type == "function":
        return NamedTool(Named(given(choice.name, "tool_choice", "name"))), tools
    if choice.type == "allowed_tools":
        allowed = {tool.name for tool in choice.tools or []}
        return choice.mode or "auto", [tool for tool in tools if tool.function.name in allowed]
    raise Problem(400, f"tool_choice: a tool of type {choice.type:.40}; this server calls functions", "tool_choice")
