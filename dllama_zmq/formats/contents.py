"""The contents of a model's files, also of models that cannot be run. Knows no model's code."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import read_json
from dllama_zmq.formats.gguf.container import Container
from dllama_zmq.formats.hf.safetensors import read_shards
from dllama_zmq.formats.kinds import GGUF_MAGIC, first_bytes, model_files

_CONFIG = "config.json"
_MAX_CHARS = 64


def contents_of(path: Path) -> dict[str, Any] | None:
    """Architecture, tensors, parameters, and parameters by the file's names of types; None for other files."""
    try:
        if path.is_dir() and not (path / _CONFIG).exists() and len(model_files(path)) == 1:
            path = model_files(path)[0]
        if path.is_dir() or path.suffix == ".safetensors":
            return _of_folder(path if path.is_dir() else path.parent)
        if first_bytes(path) != GGUF_MAGIC:
            return None
        return _of_gguf(path)
    except FormatError:
        return None


def _of_gguf(path: Path) -> dict[str, Any]:
    file = Container(path)
    file.pages.close()
    n_values: Counter[str] = Counter()
    for tensor in file.tensors:
        n_values[tensor.type_name] += math.prod(tensor.shape)
    return _facts(path, file.metadata.get("general.architecture"), len(file.tensors), n_values)


def _of_folder(folder: Path) -> dict[str, Any]:
    model_type = read_json(folder / _CONFIG, dict[str, Any]).get("model_type")
    entries = read_shards(folder)
    n_values: Counter[str] = Counter()
    for entry in entries.values():
        n_values[entry.dtype] += math.prod(entry.shape)
        entry.pages.close()
    return _facts(folder, model_type, len(entries), n_values)


def _facts(path: Path, architecture: object, n_tensors: int, n_values: dict[str, int]) -> dict[str, Any]:
    return {
        "path": str(path),
        "architecture": (architecture if isinstance(architecture, str) else "")[:_MAX_CHARS] or "none named",
        "parameters": sum(n_values.values()),
        "tensors": n_tensors,
        "parameters_by_type": dict(sorted(n_values.items(), key=lambda item: -item[1])),
    }
