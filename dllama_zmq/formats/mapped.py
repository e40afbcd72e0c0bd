"""A memory-mapped file: its bytes as read-only views. Knows no format."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.files import open_regular
from dllama_zmq.quants import U8


class MappedFile:
    """A mapped regular file. Raises FormatError if it cannot be opened or mapped, or is empty.

    stamp: numbers, at least one of which differs if the file was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as (file, self.nbytes):
            status = os.fstat(file.fileno())
            self.stamp = (self.nbytes, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            if not self.nbytes:
                raise FormatError(f"{path}: the file is empty. Copy or download it again.")
            try:
                self._pages: mmap.mmap | None = mmap.mmap(file.fileno(), self.nbytes, access=mmap.ACCESS_READ)
            except OSError as error:
                raise FormatError(
                    f"{path}: its {self.nbytes} bytes cannot be mapped: {error.strerror}. "
                    f"Check the limit of address space (ulimit -v), or copy it to a local disk."
                ) from error

    def view(self, offset: int, nbytes: int) -> U8:
        """`nbytes` bytes from `offset`; the caller has checked the bounds. The view stays valid after `close`."""
        if self._pages is None:
            raise UsageError(f"{self.path} is closed; open it again to read from it.")
        return np.frombuffer(self._pages, np.uint8, nbytes, offset)

    def check_apart(self, extents: Iterable[tuple[int, int, str]]) -> None:
        """Raise FormatError if two of the extents overlap, each an offset, bytes and a name."""
        for (first, nbytes, name), (second, _, other) in pairwise(sorted(extents)):
            if first + nbytes > second:
                raise FormatError(
                    f"{self.path}: offset {second}: {name[:80]} and {other[:80]} overlap. The file is damaged; copy or "
                    "download it again."
                )

    def forget_pages(self) -> None:
        """Release the file's pages from this process's memory; reading maps them again."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the map, once its last view is gone."""
        pages, self._pages = self._pages, None
        if pages is not None:
            with suppress(BufferError):  # there are views: the map closes with the last of them
                pages.close()


@contextmanager
def closed_on_error(files: Iterable[MappedFile]) -> Iterator[None]:
    """Closes `files`, a list that may grow, if the block ends with an error."""
    try:
        yield
    except BaseException:  # Ctrl-C, too
        for file in files:
            file.close()
        raise
