"""The requests of /v1/messages, translated to chat requests. Knows no answer."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

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
    ResponseFormat,
    Signature,
    Tool,
    given,
)


class Block(Struct):
    """A part of a message: type text, tool_use, tool_result, thinking or redacted_thinking."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    thinking: str | None = None


class Turn(Struct):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolSignature(Struct):
    """A function of the client. type: "custom", if given."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class ToolChoice(Struct):
    """Whether tools must be called. name: the tool to call, for type "tool"."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    """Whether the model thinks first, if its template has a switch."""

    type: str


class OutputFormat(Struct):
    """The form that the answer must have."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    """The newer place of the format."""

    format: OutputFormat | None = None


class Metadata(Struct):
    user_id: str | None = None


class CountRequest(Options, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""

    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[ToolSignature] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of POST /v1/messages: Anthropic's options, and those of chat completions."""

    stop_sequences: list[str] | None = None
    output_format: OutputFormat | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None


def as_chat(body: CountRequest) -> ChatRequest:
    """The request in the form of chat completions. Raises Problem for what this server does not support."""
    messages = [] if body.system is None else [Message("system", text_of(body.system, "system"))]
    for place, turn in enumerate(body.messages):
        messages += messages_of(turn, f"messages[{place}].content")
    options = {name: getattr(body, name) for name in Options.__struct_fields__}
    request = ChatRequest(
        **options,
        messages=messages,
        tools=[_tool(tool, place) for place, tool in enumerate(body.tools or [])] or None,
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=_parallel(body.tool_choice),
        chat_template_kwargs=_variables(body),
    )
    if isinstance(body, MessagesRequest):
        request = structs.replace(request, n=1, stop=body.stop_sequences or body.stop)
        form = body.output_format or (body.output_config.format if body.output_config else None)
        if form is not None:
            request.response_format = ResponseFormat("json_schema", JsonSchema(form.schema))
    return request


def messages_of(turn: Turn, where: str) -> list[Message]:
    """One message in the form of chat completions. Results of tools become messages of their own, before the text."""
    if isinstance(turn.content, str):
        return [Message(turn.role, turn.content)]
    texts, results, calls, thoughts = [], [], [], []
    for place, block in enumerate(turn.content):
        here = f"{where}[{place}]"
        if block.type == "text":
            texts.append(given(block.text, here, "text"))
        elif block.type == "tool_result" and turn.role == "user":
            text = text_of(block.content or "", f"{here}.content")
            results.append(Message("tool", text, tool_call_id=given(block.tool_use_id, here, "tool_use_id")))
        elif block.type == "tool_use" and turn.role == "assistant":
            arguments = json.dumps(block.input or {}, ensure_ascii=False)
            calls.append(Called(Function(given(block.name, here, "name"), arguments), given(block.id, here, "id")))
        elif block.type == "thinking" and turn.role == "assistant":
            thoughts.append(given(block.thinking, here, "thinking"))
        elif block.type != "redacted_thinking":
            raise Problem(400, f"{here}: a block of type {block.type:.40} in a message of the {turn.role}", where)
    said = Message(turn.role, "".join(texts), tool_calls=calls or None, reasoning_content="".join(thoughts) or None)
    return results if results and not texts else [*results, said]


def text_of(content: str | list[Block], where: str) -> str:
    """The text of a content that is only text. Raises Problem for any other part."""
    if isinstance(content, str):
        return content
    for place, block in enumerate(content):
        if block.type != "text":
            raise Problem(400, f"{where}[{place}]: a {block.type:.40} block; this server reads only text", where)
    return "".join(given(block.text, f"{where}[{place}]", "text") for place, block in enumerate(content))


def _tool(tool: ToolSignature, place: int) -> Tool:
    if tool.type not in (None, "custom"):
        raise Problem(
            400, f"tools[{place}]: a tool of type {tool.type:.40}; this server calls functions of the client", "tools"
        )
    return Tool(Signature(tool.name, tool.description, tool.input_schema))


def _choice(choice: ToolChoice | None) -> Literal["auto", "none", "required"] | NamedTool | None:
    if choice is None:
        return None
    if choice.type == "tool":
        return NamedTool(Named(given(choice.name, "tool_choice", "name")))
    return "required" if choice.type == "any" else choice.type


def _parallel(choice: ToolChoice | None) -> bool | None:
    return False if choice is not None and choice.disable_parallel_tool_use else None


def _variables(body: CountRequest) -> dict[str, Any] | None:
    """The template's variables. Thinking is `enable_thinking` in Qwen's templates, `thinking` in DeepSeek's."""
    if body.thinking is None:
        return body.chat_template_kwargs
    thinks = body.thinking.type != "disabled"
    return {"enable_thinking": thinks, "thinking": thinks, **(body.chat_template_kwargs or {})}
