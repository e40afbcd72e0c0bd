"""The API's answers in OpenAI's form, with llama-server's additional fields. UNSET fields are left out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from dllama_zmq import __version__
from dllama_zmq.bus.client_messages import Logprob
from dllama_zmq.gateway.metrics import Tally

FINGERPRINT = f"b{__version__}-dllama-zmq"
"""llama.cpp's clients expect it to begin with a b."""


class PromptTokens(Struct):
    cached_tokens: int


class Usage(Struct):
    """The tokens of a request, over all its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> Usage:
        """The usage of some requests together."""
        prompt, answer = sum(one.n_prompt for one in tallies), sum(one.n_tokens for one in tallies)
        return cls(prompt, answer, prompt + answer, PromptTokens(sum(one.n_cached for one in tallies)))


class InputTokens(Struct):
    """The tokens of a prompt, in the form of OpenAI's /v1/responses/input_tokens."""

    input_tokens: int
    object: str = "response.input_tokens"


class Timings(Struct):
    """llama-server's timings: of prompt tokens that were not cached, and of generated tokens after the first."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float

    @classmethod
    def of(cls, tally: Tally) -> Timings:
        """The timings of a request so far."""
        n_prompt, prompt_s = tally.n_prompt - tally.n_cached, max(0.0, tally.first_token - tally.began)
        n, seconds = tally.n_tokens, tally.last_token - tally.first_token
        return cls(
            tally.n_cached,
            *(n_prompt, 1000 * prompt_s, 1000 * prompt_s / max(1, n_prompt), n_prompt / prompt_s if prompt_s else 0.0),
            *(n, 1000 * seconds, 1000 * seconds / max(1, n - 1), (n - 1) / seconds if seconds else 0.0),
        )


class PromptProgress(Struct):
    """Prompt tokens: all, the cached ones, the evaluated ones."""

    total: int
    cache: int
    processed: int
    time_ms: int


class QueuePlace(Struct):
    """Why a request waits: for `ahead` others, or for the reason in `note`."""

    ahead: int
    note: str


class Top(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Top):
    top_logprobs: list[Top]

    @classmethod
    def of(cls, logprobs: Sequence[Logprob]) -> TokenLogprob:
        """For one token: the first entry is the token itself, then come the most likely ones."""
        own, *tops = [Top(one.text, one.logprob, list(one.text.encode())) for one in logprobs]
        return cls(own.token, own.logprob, own.bytes, tops)


class ChatLogprobs(Struct):
    content: list[TokenLogprob]

    @classmethod
    def of(cls, logprobs: Sequence[Sequence[Logprob]]) -> ChatLogprobs | UnsetType:
        """UNSET if there are none, because an empty object breaks clients."""
        return cls([TokenLogprob.of(one) for one in logprobs]) if logprobs else UNSET


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class FunctionCall(Struct):
    name: str
    arguments: str


class ToolCall(Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class FunctionPart(Struct):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallPart(Struct):
    index: int
    function: FunctionPart
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class AnswerMessage(Struct):
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    role: str = "assistant"


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChatLogprobs | UnsetType = UNSET


class ChatReply(Struct):
    """The answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings
    object: str = "chat.completion"
    system_fingerprint: str = FINGERPRINT


class ChatDelta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPart] | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | UnsetType = UNSET


class ChatChunk(Struct):
    """A chunk of a streamed answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET
    queued: QueuePlace | UnsetType = UNSET
    object: str = "chat.completion.chunk"
    system_fingerprint: str = FINGERPRINT


class CompletionChoice(Struct):
    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None


class CompletionReply(Struct):
    """The answer of /v1/completions, and a chunk of a streamed one."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET
    queued: QueuePlace | UnsetType = UNSET
    object: str = "text_completion"
    system_fingerprint: str = FINGERPRINT


def new_id(prefix: str) -> str:
    """A new identifier, such as chatcmpl-…, or msg_… in responses and messages."""
    return prefix + secrets.token_hex(16)
