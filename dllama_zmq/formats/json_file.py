"""A JSON file of a model folder, checked against a type. Knows no model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import open_regular

MAX_JSON_BYTES = 1 << 23
"""Of one file: the index of Qwen3 235B, 37,000 tensors, has half of that."""

T = TypeVar("T")


def read_json(path: Path, kind: type[T]) -> T:
    """The file as a `kind` of msgspec; keys that `kind` does not have are passed over. Raises FormatError."""
    with open_regular(path) as (file, nbytes):
        if nbytes > MAX_JSON_BYTES:
            raise FormatError(f"{path}: {nbytes} bytes long; expected at most {MAX_JSON_BYTES}. It is damaged.")
        data = file.read(MAX_JSON_BYTES)
    return decode_json(data, kind, str(path))


def decode_json(data: bytes, kind: type[T], where: str) -> T:
    """`data` as a `kind`; `where` begins the message of the FormatError that other bytes end in."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: {str(error)[:300]}. The file is damaged, or is none of this kind.") from error
    except RecursionError as error:
        raise FormatError(f"{where}: nested too deeply to be read. The file is damaged.") from error
