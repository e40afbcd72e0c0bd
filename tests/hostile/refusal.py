"""What every hostile file must meet: our own error in words, soon, and without much memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import ModelFile

PEAK_BYTES = 32 << 20  # of which the table of the largest legal number of layers takes about a half
LONGEST_S = 5.0


def opens_whole_or_is_refused(open_file: Callable[[Path], ModelFile], path: Path) -> None:
    """What `open_file` does not refuse can be read, every tensor of it whose values are finite numbers."""
    try:
        model = open_file(path)
    except FormatError:
        return
    with model:
        for tensor in model.tensors:
            try:
                n_bytes = model.read(tensor.name).nbytes
            except FormatError as error:
                if "infinite or NaN" not in str(error):
                    raise
            else:
                assert n_bytes == tensor.nbytes(model.spec)


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The words with which `read` refuses `path`; fails unless it does so in bounded time and memory."""
    before = time.thread_time()  # not the wall's: other tests run beside this one
    with pytest.raises(FormatError):
        read(path)
    took_s = time.thread_time() - before
    tracemalloc.start()  # only now: where small objects are made it takes ten times as long as the reading itself
    try:
        with pytest.raises(FormatError) as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took_s < LONGEST_S
    assert peak < PEAK_BYTES
    assert str(path) in str(caught.value)
    return str(caught.value)
