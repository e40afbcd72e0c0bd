"""A published shape as a file of random weights, made once and kept in the user's cache folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats import data_bytes, open_m, write_m
from dllama_zmq.formats.random_model import random_tensors
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.shapes import OVERRIDES
from dllama_zmq.spec import FloatType, ModelSpec
from dllama_zmq.telling import Tells

_SEED = 1


def shape_title(name: str, weight_type: FloatType, overrides: Mapping[str, int]) -> str:
    """What tells this model from others, fit for a file name: `tinyllama-q40-layers4`."""
    changes = [f"{key.replace('-', '')}{overrides[key]}" for key in OVERRIDES if key in overrides]
    return "-".join([name.lower(), weight_type.name.lower(), *changes])


def is_file_of(spec: ModelSpec, path: Path) -> bool:
    """Whether `path` is a whole file of exactly these numbers: a shape may change from one version to another."""
    try:
        with open_m(path) as model:
            return model.spec == spec
    except FormatError:
        return False


def write_random(path: Path, spec: ModelSpec, tells: Tells) -> None:
    """Write random weights of `spec` to `path`, in a folder that is made where it is missing.

    Raises UsageError where the folder cannot be written or has not enough room.
    """
    n_bytes = data_bytes(spec)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be made: {error.strerror}. Set XDG_CACHE_HOME to another.") from error
    if n_bytes > free:
        raise UsageError(
            f"{path.stem} takes {n_bytes / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB free; make room, set "
            "XDG_CACHE_HOME to a folder on a larger disk, or use --layers"
        )
    tells.line(f"making {path} of random weights, {n_bytes / 1e9:.2f} GB, to be kept for the next time")
    write_m(path, spec, told(random_tensors(spec, _SEED), path.name, n_bytes, tells))


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/dllama-zmq/shapes`, in ~/.cache where that is not set. Raises UsageError without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "dllama-zmq" / "shapes"
    except RuntimeError as error:
        raise UsageError("there is no home folder to keep the model in; set XDG_CACHE_HOME to a folder") from error


def told(
    tensors: Iterator[tuple[str, BlockMatrix]], name: str, n_bytes: int, tells: Tells
) -> Iterator[tuple[str, BlockMatrix]]:
    """The same tensors; each is drawn when it is asked for, and told as a part of `n_bytes`."""
    done = 0
    for tensor, matrix in tensors:
        tells.now(f"writing {name}", done, n_bytes)
        yield tensor, matrix
        done += matrix.data.nbytes
