"""Routes about texts and the model: tokens, templates, embeddings, and llama-server's properties."""

from __future__ import annotations

import base64
from array import array
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from dllama_zmq import __version__
from dllama_zmq.bus.prompts import prompt_on_wire, text_on_wire
from dllama_zmq.bus.text_messages import Detokenize, Detokenized, Embed, Embedding, Tokenize, Tokens
from dllama_zmq.gateway.chat import conversation
from dllama_zmq.gateway.endpoint import Call, Reply
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.requests import ChatRequest, Prompts, TokenId, prompts_of
from dllama_zmq.gateway.sampling_params import TEMPERATURE, TOP_P


class TokenizeRequest(Struct):
    """The request of llama-server's /tokenize.

    add_special: begin the tokens as those of a prompt. parse_special: names of special tokens in the text become them.
    """

    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class TokenPiece(Struct):
    id: int
    piece: str


class TokenizeReply(Struct):
    tokens: list[int | TokenPiece]


class DetokenizeRequest(Struct):
    tokens: list[TokenId]


class DetokenizeReply(Struct):
    content: str


class TemplateReply(Struct):
    prompt: str


class EmbeddingsRequest(Struct):
    """dimensions: only the model's own number is accepted."""

    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class EmbeddingEntry(Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingsUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(Struct):
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingsUsage
    object: str = "list"


class Props(Struct):
    """The properties that clients of llama-server read."""

    default_generation_settings: dict[str, Any]
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    build_info: str


async def tokenize(call: Call[TokenizeRequest]) -> Reply:
    """The tokens of a text."""
    body = call.body
    bos, specials = (None if body.add_special else False), body.parse_special is not False
    found = await call.service.ask(call.user, Tokenize(1, text_on_wire(body.content), bos, specials), Tokens)
    if not body.with_pieces:
        return Reply(TokenizeReply(list(found.tokens)))
    return Reply(TokenizeReply([TokenPiece(*pair) for pair in zip(found.tokens, found.pieces, strict=True)]))


async def detokenize(call: Call[DetokenizeRequest]) -> Reply:
    """The text of some tokens."""
    found = await call.service.ask(call.user, Detokenize(1, list(call.body.tokens)), Detokenized)
    return Reply(DetokenizeReply(found.text))


async def apply_template(call: Call[ChatRequest]) -> Reply:
    """The text that the chat template makes of a conversation."""
    chat = conversation(call.body, (await call.service.model()).template)
    return Reply(TemplateReply((await call.service.tokens(call.user, chat)).text))


async def embeddings(call: Call[EmbeddingsRequest]) -> Reply:
    """For each text, the mean of its tokens' last hidden states, as a vector of length 1."""
    body, service = call.body, call.service
    model = await service.model()
    if body.dimensions not in (None, model.dim):
        raise Problem(400, f"dimensions is {body.dimensions}; this model's embeddings have {model.dim}", "dimensions")
    entries, n_tokens = [], 0
    for index, prompt in enumerate(prompts_of(body.input, "input")):
        request = Embed(1, prompt_on_wire(prompt))
        (found,) = [one async for one in service.follow(call.user, request) if isinstance(one, Embedding)]
        n_tokens += found.prompt_tokens
        as_text = body.encoding_format == "base64"
        values = base64.b64encode(array("f", found.values).tobytes()).decode() if as_text else found.values
        entries.append(EmbeddingEntry(index, values))
    return Reply(EmbeddingsReply(entries, model.name, EmbeddingsUsage(n_tokens, n_tokens)))


async def props(call: Call[None]) -> Reply:
    """The server's properties."""
    model = await call.service.model()
    settings = {"n_ctx": model.seq_len, "params": {"temperature": TEMPERATURE, "top_p": TOP_P, "n_predict": -1}}
    eos = model.eos[0] if model.eos else ""
    return Reply(
        Props(
            *(settings, model.name, model.path, model.template, model.bos, eos),
            *({"vision": False, "audio": False}, f"dllama-zmq {__version__}"),
        )
    )
