"""Questions of clients about text, tokens, the model and the links to workers (PROTOCOL.md §10)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dllama_zmq.bus.messages import Big, Count, Message, Name, Text
from dllama_zmq.bus.prompts import AnyPrompt, PromptText, TokenIds

RequestId = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
MAX_TEXT_CHARACTERS = 1 << 20
Vector = Annotated[list[Annotated[float, msgspec.Meta(ge=-1, le=1)]], msgspec.Meta(max_length=1 << 16)]
LongText = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS)]

# --- client to root -------------------------------------------------------------------------------------------------


class Tokenize(Message, frozen=True):
    """Ask for the tokens of `prompt`. Answered with Tokens.

    bos: whether they begin with the BOS; None: as in a prompt. specials: names of special tokens in the text become
    these tokens. Both are for texts; a chat has them as its template writes them.
    """

    id: RequestId
    prompt: PromptText
    bos: bool | None
    specials: bool


class Detokenize(Message, frozen=True):
    """Ask for the text of these tokens. Answered with Detokenized."""

    id: RequestId
    tokens: TokenIds


class ModelRequest(Message, frozen=True):
    """Ask for the description of the model. Answered with Model."""

    id: RequestId


class Embed(Message, frozen=True):
    """Ask for the embedding of `prompt`. Queued like Generate, and answered with Embedding."""

    id: RequestId
    prompt: AnyPrompt


class LinksRequest(Message, frozen=True):
    """How fast are the links to the workers now? Answered with Links, when each has been measured between two steps."""

    id: RequestId


# --- root to client -------------------------------------------------------------------------------------------------


class Tokens(Message, frozen=True):
    """The tokens, the text or name of each, and the whole text; for a chat, the text that its template made."""

    id: Big
    tokens: list[Count]
    pieces: list[Text]
    text: LongText


class Detokenized(Message, frozen=True):
    """The text of the tokens; special tokens print nothing."""

    id: Big
    text: LongText


class Model(Message, frozen=True):
    """The model that answers.

    seq_len: positions that a text may have on this cluster; context: the model's own. size_bytes: of its weights as
    they are used. bos, eos: names of these tokens, bos "" if there is none. template: the text of the chat template,
    "" if there is none. specials: by name, the ids of the special tokens that the template names. created: when its
    file was made, in seconds since 1970.
    """

    id: Big
    name: Text
    path: Text
    architecture: Name
    n_params: Big
    size_bytes: Big
    seq_len: Count
    context: Count
    vocab_size: Count
    dim: Count
    bos: Text
    eos: list[Text]
    template: LongText
    specials: dict[Text, Count]
    created: Big


class Embedding(Message, frozen=True):
    """The mean over the prompt's tokens of their last hidden states, after the final norm, made a vector of length 1.

    values (dim): float32.
    """

    id: Big
    values: Vector
    prompt_tokens: Count


class LinkStatus(msgspec.Struct, frozen=True):
    """The link between the root and one worker, as messages of the bus find it. None: it was not measured.

    round_trip_s: the median of some messages without content, both programs' part included. to_bytes_per_s,
    from_bytes_per_s: to the worker, and from it. clock_s: how far its clock is ahead of the root's, to half a round
    trip. note: why something was not measured.
    """

    name: str
    round_trip_s: float | None = None
    to_bytes_per_s: float | None = None
    from_bytes_per_s: float | None = None
    clock_s: float | None = None
    note: str = ""


class Links(Message, frozen=True):
    """Every worker's link, in node order. clock_us: the root's clock, in microseconds since 1970."""

    id: Big
    clock_us: Big
    links: list[LinkStatus]
