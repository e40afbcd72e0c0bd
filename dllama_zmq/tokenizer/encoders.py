"""Text to token ids, by the library that defines each kind of vocabulary. Knows no BOS, no decoding and no file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from dllama_zmq.errors import DllamaError, FormatError, RequestError
from dllama_zmq.tokenizer.data import Encoder
from dllama_zmq.tokenizer.pretokenizers import PreTokenizer

if TYPE_CHECKING:
    import tokenizers

Merge = tuple[str, str]
"""Two pieces in byte-level encoding, which are merged."""


def _chars_of_bytes() -> str:
    """The character of each byte in a byte-level vocabulary. Source: GPT-2's bytes_to_unicode."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    chars = {value: chr(value) for value in shown} | {value: chr(256 + i) for i, value in enumerate(hidden)}
    return "".join(chars[value] for value in range(256))


CHARS_OF_BYTES = _chars_of_bytes()
_BYTES_OF_CHARS = codecs.charmap_build(CHARS_OF_BYTES)


def to_chars(piece: bytes) -> str:
    """Bytes in byte-level encoding: one printable character per byte."""
    return codecs.charmap_decode(piece, "strict", CHARS_OF_BYTES)[0]


def written_bytes(piece: str) -> bytes | None:
    """The bytes of a piece in byte-level encoding; None for any other piece, which no text can contain."""
    try:
        return codecs.charmap_encode(piece, "strict", _BYTES_OF_CHARS)[0]
    except UnicodeEncodeError:
        return None


def to_bytes(piece: str) -> bytes:
    """The bytes of a piece in byte-level encoding; the UTF-8 of any other piece."""
    written = written_bytes(piece)
    return piece.encode("utf-8", "replace") if written is None else written


def sentencepiece_library(model: bytes, source: str) -> Any:
    """A SentencePieceProcessor of the serialized `model`. Raises FormatError if the library refuses it."""
    import sentencepiece  # here, so that only a root with such a vocabulary pays for the import

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    # UnicodeDecodeError: its message has a piece that is not UTF-8
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{source}: SentencePiece refuses this vocabulary: {error} Get the file again.") from error
    return processor


def byte_level_encoder(ids: dict[str, int], merges: list[Merge], pre: PreTokenizer, source: str) -> Encoder:
    """A byte-level BPE encoder. `ids` has the pieces that text can become; `merges` are in order of rank.

    Pieces are in byte-level encoding.
    """
    # here, so that only a root with such a vocabulary pays for the import
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    with library_errors(FormatError, f"{source}: the tokenizers library refuses this vocabulary", "."):
        bpe = models.BPE(vocab=ids, merges=merges, ignore_merges=pre.whole)
    tokenizer = Tokenizer(bpe)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return library_encoder(tokenizer, source)


def library_encoder(
    tokenizer: tokenizers.Tokenizer, source: str, names_are_text: bool = False, lock: Lock | None = None
) -> Encoder:
    """An encoder of the tokenizers library that adds no tokens before or after the text.

    names_are_text: names of special tokens are ordinary text. lock: shared by all encoders of `tokenizer`.
    """

    own_lock = lock or Lock()

    def encode(text: str) -> list[int]:
        with library_errors(RequestError, f"{source}: the tokenizers library cannot encode this text"), own_lock:
            tokenizer.encode_special_tokens = names_are_text  # a flag of the shared object
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
            return ids

    return encode


@contextmanager
def library_errors(kind: type[DllamaError], problem: str, advice: str = "") -> Iterator[None]:
    """Turn errors of a Rust library into `kind`. Its panics are not Exceptions."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{problem}: {error}{advice}") from error


def with_names(encode: Encoder, names: Mapping[str, int], inside: Encoder | None = None) -> Encoder:
    """`encode`, but each of `names` in a text becomes its token; the longest match wins.

    inside: encodes everything but the beginning of the text; None: as `encode`.
    """
    if not names:
        return encode
    inside = inside or encode
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def encode_marked(text: str) -> list[int]:
        tokens: list[int] = []
        at = 0
        for match in pattern.finditer(text):
            if match.start() > at:
                tokens += (inside if at else encode)(text[at : match.start()])
            tokens.append(names[match.group()])
            at = match.end()
        if at < len(text) or not at:
            tokens += (inside if at else encode)(text[at:])
        return tokens

    return encode_marked


def rank_encoder(ranks: Mapping[bytes, int], pre: PreTokenizer, source: str) -> Encoder:
    """A byte-level BPE encoder of a vocabulary with ids as ranks.

    All splits of a token into two lower-ranked tokens are merges. This is equivalent to tiktoken: when a rank is
    applied, all lower ranks have been, so only the split that they lead to can still occur in the text. If there is a
    token that no merge reaches, a split piece that is a token is not merged.
    """
    ids = {to_chars(piece): rank for piece, rank in ranks.items()}
    merges: list[Merge] = []
    for piece, rank in sorted(ids.items(), key=lambda item: item[1]):
        n_before = len(merges)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if ids.get(left, rank) < rank and ids.get(right, rank) < rank:
                merges.append((left, right))
        if len(piece) > 1 and len(merges) == n_before:
            pre = replace(pre, whole=True)
    return byte_level_encoder(ids, merges, pre, source)
