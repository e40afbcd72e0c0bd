"""A JSON file of a model folder, checked against a type. Knows no model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import open_regular
from dllama_zmq.typed import typed_json

MAX_JSON_BYTES = 1 << 23
"""Twice the size of the index of Qwen3 235B with its 37,000 tensors."""

T = TypeVar("T")


def read_json(path: Path, kind: type[T], max_bytes: int = MAX_JSON_BYTES) -> T:
    """The file as a `kind` of msgspec; other keys are ignored. Raises FormatError."""
    with open_regular(path) as (file, nbytes):
        if nbytes > max_bytes:
            raise FormatError(f"{path}: {nbytes} bytes long; expected at most {max_bytes}. It is damaged.")
        data = file.read(max_bytes)
    return typed_json(data, kind, str(path))
