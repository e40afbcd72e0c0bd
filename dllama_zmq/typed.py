"""Untrusted values as typed data; an error names the key of the wrong one. Knows no file."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from dllama_zmq.errors import FormatError

T = TypeVar("T")

_ADVICE = "The file is damaged, or of another kind; get it again."


def typed(raw: object, kind: type[T], where: str, advice: str = _ADVICE) -> T:
    """`raw` as a `kind` of msgspec; other keys are ignored. Raises FormatError, which begins with `where`."""
    try:
        return msgspec.convert(raw, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where}: {_in_words(error)}. {advice}") from error


def typed_json(data: bytes | str, kind: type[T], where: str, advice: str = _ADVICE) -> T:
    """The JSON text `data` as a `kind`, as by `typed`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where}: {_in_words(error)}. {advice}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: not JSON: {str(error)[:300]}. {advice}") from error
    except RecursionError as error:
        raise FormatError(f"{where}: not JSON of a usual depth: {error}. {advice}") from error


def _in_words(error: msgspec.ValidationError) -> str:
    """`tokens[3]: expected str, got int` for msgspec's "Expected `str`, got `int` - at `$.tokens[3]`"."""
    problem, _, key = str(error)[:300].replace("`", "").partition(" - at ")
    problem = problem[:1].lower() + problem[1:]
    if missing := re.fullmatch("object missing required field (.*)", problem):
        problem = f"{missing[1]} is missing"
    return f"{key.replace('$.', '').replace('$', '')}: {problem}" if key else problem
