"""The requests of /v1/chat/completions and /v1/completions. Unknown fields are ignored; null means the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from dllama_zmq.gateway.problems import Problem

TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]
_Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
_Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Tokens = Annotated[int, Meta(ge=-1, le=1 << 31)]
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "reasoning_text", "summary_text")
T = TypeVar("T")


class StreamOptions(Struct):
    """include_usage: a last chunk without choices has the usage."""

    include_usage: bool | None = None


class JsonSchema(Struct):
    """A named schema. Every schema is strict here."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None


class ResponseFormat(Struct):
    """The form that the answer must have. schema: llama-server's place for the schema of json_object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class StructuredOutputs(Struct):
    """vLLM's structured outputs: one of these."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Options(Struct):
    """The options of both routes, under the names of OpenAI, llama-server and vLLM."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = None
    n_predict: _Tokens | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    top_k: _Whole | None = None
    min_p: _Number | None = None
    typical_p: _Number | None = None
    repeat_penalty: _Number | None = None
    repetition_penalty: _Number | None = None
    presence_penalty: _Number | None = None
    frequency_penalty: _Number | None = None
    logit_bias: dict[int, _Number] | list[tuple[int, _Number]] | None = None
    seed: _Whole | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    cache_prompt: bool | None = None
    user: str | None = None


class Part(Struct):
    """A part of a message; only text is supported."""

    type: str
    text: str | None = None
    refusal: str | None = None


def text_of(parts: str | Sequence[Part], where: str) -> str:
    """The joined text of the parts. Raises Problem, with `where`, for a part that is no text."""
    if isinstance(parts, str):
        return parts
    texts = []
    for place, part in enumerate(parts):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in _TEXT_PARTS or text is None:
            raise Problem(400, f"{where}[{place}]: a part of type {part.type:.40}; this server reads only text", where)
        texts.append(text)
    return "".join(texts)


def given(value: T | None, where: str, name: str) -> T:
    """`value`, the field `name` of the item at `where`. Raises Problem if it is missing."""
    if value is None:
        raise Problem(400, f"{where}.{name} is missing", where)
    return value


class Function(Struct):
    """The function of a call; its arguments are JSON text or an object."""

    name: str
    arguments: str | dict[str, Any] | None = None


class Called(Struct):
    """A tool call in an earlier answer."""

    function: Function
    id: str | None = None
    type: str = "function"


class Message(Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Signature(Struct, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool; every tool is a function."""

    function: Signature
    type: Literal["function"] = "function"


class Named(Struct):
    """The name of a function."""

    name: str


class NamedTool(Struct):
    """The tool that must be called."""

    function: Named
    type: Literal["function"] = "function"


class ChatRequest(Options, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


Prompts = str | list[str | TokenId | list[TokenId]]
_MAX_PROMPTS = 64


def prompts_of(given: Prompts, name: str) -> list[str | list[int]]:
    """The prompts: a text, several, a list of token ids, or several. Raises Problem, with `name`."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise Problem(400, f"{name} is an empty list", name)
    ids = [one for one in given if isinstance(one, int)]
    if len(ids) == len(given):
        return [ids]
    if ids:
        raise Problem(400, f"{name} mixes token ids with other values; give only ids, or a list of prompts", name)
    if len(given) > _MAX_PROMPTS:
        raise Problem(400, f"{len(given)} prompts; at most {_MAX_PROMPTS} in one request", name)
    return [one for one in given if not isinstance(one, int)]


class CompletionRequest(Options, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
