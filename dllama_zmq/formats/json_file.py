"""A JSON file of a model folder, checked against a type. Knows no model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import open_regular

MAX_JSON_BYTES = 1 << 23
"""Twice the size of the index of Qwen3 235B with its 37,000 tensors."""

T = TypeVar("T")


def read_json(path: Path, kind: type[T]) -> T:
    """The file as a `kind` of msgspec; other keys are ignored. Raises FormatError."""
    with open_regular(path) as (file, nbytes):
        if nbytes > MAX_JSON_BYTES:
            raise FormatError(f"{path}: {nbytes} bytes long; expected at most {MAX_JSON_BYTES}. It is damaged.")
        data = file.read(MAX_JSON_BYTES)
    return decode_json(data, kind, str(path))


def decode_json(data: bytes, kind: type[T], where: str) -> T:
    """`data` as a `kind`. Raises FormatError, which begins with `where`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: {str(error)[:300]}. The file is damaged, or of another kind.") from error
    except RecursionError as error:
        raise FormatError(f"{where}: too deeply nested. The file is damaged.") from error
