"""A file in the address space: its bytes as read-only views, nothing copied. Knows no format."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.files import open_regular
from dllama_zmq.quants import U8


class MappedFile:
    """All bytes of a regular file. Raises FormatError where it cannot be opened or mapped, or is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as (file, self.nbytes):
            if not self.nbytes:
                raise FormatError(f"{path}: 0 bytes long: it is empty. Copy or download it again.")
            try:
                self._pages: mmap.mmap | None = mmap.mmap(file.fileno(), self.nbytes, access=mmap.ACCESS_READ)
            except OSError as error:
                raise FormatError(
                    f"{path}: its {self.nbytes} bytes cannot be mapped: {error.strerror}. "
                    f"Check the limit of address space (ulimit -v), or copy it to a local disk."
                ) from error

    def view(self, offset: int, nbytes: int) -> U8:
        """`nbytes` bytes from `offset`, which the caller has checked to be there. The view outlives `close`."""
        if self._pages is None:
            raise UsageError(f"{self.path} is closed; open it again to read from it.")
        return np.frombuffer(self._pages, np.uint8, nbytes, offset)

    def forget_pages(self) -> None:
        """Take the file's pages out of this process's memory; they come back when they are read again."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the map. It stays for as long as a view of it lives."""
        pages, self._pages = self._pages, None
        if pages is not None:
            with suppress(BufferError):  # views live: the last of them takes the map with it
                pages.close()
