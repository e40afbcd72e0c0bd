"""Pre-tokenizers of byte-level vocabularies: published patterns by name. Knows no library.

Sources: the models' tokenizer.json; llama.cpp's src/llama-vocab.cpp for the names in GGUF files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from dllama_zmq.errors import UnsupportedModel

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARK = r"[^\r\n\p{L}\p{N}]?"

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_MARK}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_MARK}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = rf"{_CONTRACTIONS}|{_MARK}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = rf"{_MARK}{_UPPER}*{_LOWER}+|{_MARK}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_MARK}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_MARK}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


class PreTokenizer(Struct, frozen=True):
    """Patterns that split a text one after another; matches and the text between them become pieces.

    nfc: the text is first normalized to Unicode's NFC. whole: a piece that is a token is not merged.
    """

    splits: tuple[str, ...]
    nfc: bool = False
    whole: bool = False


GPT2 = PreTokenizer((GPT2_SPLIT,))
LLAMA3 = PreTokenizer((_LLAMA3,), whole=True)
QWEN2 = PreTokenizer((_QWEN2,), nfc=True)
STARCODER = PreTokenizer((r"\p{N}", GPT2_SPLIT))
TEKKEN = PreTokenizer((_TEKKEN,), whole=True)

_ALIKE: tuple[tuple[PreTokenizer, str], ...] = (
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]")), "default"),
    (LLAMA3, "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0"),
    (PreTokenizer((_LLAMA3,)), "dbrx smaug-bpe"),
    (PreTokenizer((_LLAMA3,), whole=True), "glm4 chatglm-bpe"),
    (QWEN2, "qwen2 deepseek-r1-qwen kormo f2llmv2"),
    (PreTokenizer((_QWEN2,)), "stablelm2 megrez"),
    (PreTokenizer((_QWEN35,), nfc=True), "qwen35"),
    (GPT2, "gpt-2 gpt2 phi-2 mpt olmo jais mellum a.x-4.0 trillion"),
    (STARCODER, "starcoder smollm refact command-r codeshell exaone minerva-7b"),
    (
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
        "deepseek-coder",
    ),
    (PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)), "deepseek-v3"),
    (TEKKEN, "tekken"),
    (PreTokenizer((_GPT4O,)), "gpt-4o llama4"),
)
BY_NAME = {name: pre for pre, names in _ALIKE for name in names.split()}
"""Pre-tokenizers by their names in `tokenizer.ggml.pre` of GGUF files."""
_KNOWN = {pattern for pre, _ in _ALIKE for pattern in pre.splits}
_ONE_RUN = re.compile(
    r"(?:\\[pP]\{\w+\}|\\[sSdDwWrnt]|\[[^\[\]]*\]|[^\\()\[\]{}*+?|^$.])+?(?:[*+]|\{\d{1,2}(?:,\d{0,2})?\})?", re.DOTALL
)


def is_quick(pattern: str) -> bool:
    """Whether a pattern is known to be fast on any text: published, or with a single repetition at its end."""
    return pattern in _KNOWN or _ONE_RUN.fullmatch(pattern) is not None


def pretokenizer(name: str, source: str) -> PreTokenizer:
    """The pre-tokenizer `name` of GGUF files. Raises UnsupportedModel for an unknown name."""
    if name not in BY_NAME:
        raise UnsupportedModel(
            f"{source}: tokenizer.ggml.pre is {name[:60]!r}, which this version does not know; "
            f"it knows {', '.join(sorted(BY_NAME))}. Use the tokenizer.json of the same model."
        )
    return BY_NAME[name]


_LONG_NUMBER = re.compile(rb" [0-9]+|[0-9]{4,}")
_NUMBER = re.compile(rb"[0-9]{2,3}")
_MARKED_WORD = re.compile(rb"[!-&(-/:-@\[-`{-~][A-Za-z]+")  # without ': GPT-2, too, has 's and 'll


def inferred(pieces: Sequence[bytes]) -> PreTokenizer:
    """The pre-tokenizer of a vocabulary that names none, by tokens that only one pattern allows.

    Only GPT-2 has pieces of a space and digits, or of four digits; only Llama 3 has two or three digits. Of those that
    split off each digit, only Qwen has a mark and the word after it in one piece, as in "(x".
    """
    if any(_LONG_NUMBER.fullmatch(piece) for piece in pieces):
        return GPT2
    if any(_NUMBER.fullmatch(piece) for piece in pieces):
        return LLAMA3
    return QWEN2 if any(_MARKED_WORD.fullmatch(piece) for piece in pieces) else STARCODER
