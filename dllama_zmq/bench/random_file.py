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
from dllama_zmq.reporting import Reporter
from dllama_zmq.shapes import OVERRIDES
from dllama_zmq.spec import FloatType, ModelSpec


def shape_title(name: str, weight_type: FloatType, overrides: Mapping[str, int]) -> str:
    """A name for this model alone, fit for a file: `tinyllama-q40-layers4`."""
    changes = [f"{key.replace('-', '')}{overrides[key]}" for key in OVERRIDES if key in overrides]
    return "-".join([name.lower(), weight_type.name.lower(), *changes])


def kept_shape(spec: ModelSpec, title: str, reporter: Reporter) -> Path:
    """The file of `spec` in the cache folder. It is made if it is missing, damaged, or has the numbers of an earlier
    version's shape.

    Raises UsageError if the folder cannot be written or has too little space.
    """
    path = cache_folder() / f"{title}.m"
    try:
        with open_m(path) as model:
            if model.spec == spec:
                return path
    except FormatError:
        pass
    n_bytes = data_bytes(spec)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be made: {error.strerror}. Set XDG_CACHE_HOME to another.") from error
    if n_bytes > free:
        raise UsageError(
            f"{title} takes {n_bytes / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB free; make room, set "
            "XDG_CACHE_HOME to a folder on a larger disk, or use --layers"
        )
    reporter.line(f"making {path} of random weights, {n_bytes / 1e9:.2f} GB, to be kept for the next time")
    write_random(path, spec, 1, reporter)
    return path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/dllama-zmq/shapes`; ~/.cache without that variable. Raises UsageError without a home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "dllama-zmq" / "shapes"
    except RuntimeError as error:
        raise UsageError("there is no home folder to keep the model in; set XDG_CACHE_HOME to a folder") from error


def write_random(path: Path, spec: ModelSpec, seed: int, reporter: Reporter) -> None:
    """Write random weights to `path`. Each tensor is drawn when it is written."""
    n_bytes = data_bytes(spec)

    def tensors() -> Iterator[tuple[str, BlockMatrix]]:
        done = 0
        for name, matrix in random_tensors(spec, seed):
            reporter.activity(f"writing {path.name}", done, n_bytes)
            yield name, matrix
            done += matrix.data.nbytes

    write_m(path, spec, tensors())
