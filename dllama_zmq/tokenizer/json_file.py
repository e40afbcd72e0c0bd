"""A Hugging Face tokenizer.json as checked, typed data. Knows no file and no tokenizers library.

Source: the serialization of huggingface/tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.threads import converted_by_threads
from dllama_zmq.tokenizer.pretokenizers import is_quick
from dllama_zmq.typed import typed_json

MAX_PART_BYTES = 1 << 22
_MAX_PATTERN_CHARS = 8192


class AddedEntry(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class JsonModel(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]
    type: str | None = None
    merges: list[str | tuple[str, str]] = []
    unk_token: str | None = None
    ignore_merges: bool = False
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


@converted_by_threads
class JsonFile(msgspec.Struct):
    model: JsonModel
    added_tokens: list[AddedEntry] = []
    normalizer: msgspec.Raw = msgspec.Raw(b"null")
    pre_tokenizer: msgspec.Raw = msgspec.Raw(b"null")
    post_processor: msgspec.Raw = msgspec.Raw(b"null")
    decoder: msgspec.Raw = msgspec.Raw(b"null")


class Steps(Struct, frozen=True):
    """The file's steps, with sequences flattened: objects with a `type`."""

    normalizer: list[dict[str, Any]]
    pre_tokenizer: list[dict[str, Any]]
    decoder: list[dict[str, Any]]

    @property
    def quick(self) -> bool:
        """Whether all patterns are known to be fast on any text."""
        return all(is_quick(regex) for regex in _patterns((*self.normalizer, *self.pre_tokenizer)))


def read_json(text: str, source: str) -> tuple[JsonFile, Steps]:
    """Read the needed parts of a tokenizer.json.

    Raises FormatError with the place of a mistake, UnsupportedModel for a model other than BPE and unigram.
    """
    file = typed_json(text, JsonFile, source)
    unigram = isinstance(file.model.vocab, list)
    kind = file.model.type or ("Unigram" if unigram else "BPE")
    if kind not in ("BPE", "Unigram"):
        raise UnsupportedModel(f"{source}: model.type is {kind[:60]!r}; this version reads BPE and Unigram.")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = getattr(file.model, key)
        if affix:
            raise UnsupportedModel(f"{source}: model.{key} is {affix[:40]!r}, which this version does not support.")
    if (kind == "Unigram") is not unigram:
        raise FormatError(f"{source}: model.vocab does not fit a {kind} model. Get the file again.")
    steps = Steps(
        _steps(file.normalizer, "normalizer", source),
        _steps(file.pre_tokenizer, "pre_tokenizer", source),
        _steps(file.decoder, "decoder", source),
    )
    _steps(file.post_processor, "post_processor", source)
    _check_patterns(steps, source)
    return file, steps


def _steps(raw: msgspec.Raw, where: str, source: str) -> list[dict[str, Any]]:
    if len(bytes(raw)) > MAX_PART_BYTES:
        raise FormatError(f"{source}: {where} has {len(bytes(raw))} bytes; expected at most {MAX_PART_BYTES}.")
    found: list[dict[str, Any]] = []
    waiting = [msgspec.json.decode(raw)]
    while waiting:
        step = waiting.pop(0)
        if step is None:
            continue
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise FormatError(f"{source}: {where} has a step that is not an object with a type. Get the file again.")
        inner = next(
            (step[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in step), None
        )
        if step["type"] == "Sequence" and isinstance(inner, list):
            waiting = [*inner, *waiting]
        else:
            found.append(step)
    return found


def _patterns(steps: Iterable[dict[str, Any]]) -> Iterator[Any]:
    for step in steps:
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern:
            yield pattern["Regex"]


def _check_patterns(steps: Steps, source: str) -> None:
    for regex in _patterns((*steps.normalizer, *steps.pre_tokenizer, *steps.decoder)):
        if not isinstance(regex, str) or len(regex) > _MAX_PATTERN_CHARS:
            raise FormatError(
                f"{source}: the pattern {str(regex)[:80]!r} is not a text of at most {_MAX_PATTERN_CHARS} characters. "
                "Get the file again."
            )
