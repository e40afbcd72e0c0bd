"""Repacked weights of earlier starts, mapped; and those of this start, written for the next while the node is idle.

To repack costs little. To take gigabytes of memory for the first time costs seconds on many virtual machines, and
mapped tiles spare that. They are read as fast, and are in memory once for all nodes of a computer that map them
(tools/BENCHMARKS.md).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from dllama_zmq.kept_files import KeptFiles
from dllama_zmq.quants import U8

_IDLE_S = 1.0
"""How long a node must have computed nothing before it writes."""
_LOOK_S = 0.25
_PIECE_BYTES = 4 << 20
"""Brought to the disk at a time, in 0.2 s on a slow card: a node that computes again, or ends, waits for no more."""


class KeptTiles:
    """The tiles of one node's products. The node is busy until `idle` is called. files: None: nothing is kept."""

    def __init__(self, files: KeptFiles | None = None) -> None:
        self._files = files
        self._unwritten: deque[tuple[KeptFiles, str, U8]] = deque()
        self._idle_since = math.inf
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="tiles", daemon=True)

    def find(self, name: str, n_bytes: int) -> U8 | None:
        """The tiles that were added by this name, a SHA-256 in hex, at an earlier start."""
        return None if self._files is None else self._files.map(name, n_bytes)

    def add(self, name: str, tiles: U8) -> None:
        """Let tiles be written, which must not change any more."""
        if self._files is not None:
            self._unwritten.append((self._files, name, tiles))

    def busy(self) -> None:
        """The node computes: nothing is written."""
        self._idle_since = math.inf

    def idle(self) -> None:
        """The node has nothing to compute. Whatever was added is written if that lasts."""
        self._idle_since = time.monotonic()
        if self._unwritten and self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the thread. What it has not written whole is not kept."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _write_all(self) -> None:
        while self._unwritten and self._may_write():
            self._write(*self._unwritten.popleft())

    def _write(self, files: KeptFiles, name: str, tiles: U8) -> None:
        part = None if files.has(name, tiles.size) else files.part(name, tiles.size, begin=True)
        if part is None:
            return
        part.clear()  # a system that lost its power may have left anything there
        for first in range(0, tiles.size, _PIECE_BYTES):
            if not self._may_write():
                part.discard()
                return
            if not part.append(tiles[first : first + _PIECE_BYTES], on_disk=True):
                return
        part.keep()

    def _may_write(self) -> bool:
        """Wait until the node has been idle for a while. False if that is over."""
        while time.monotonic() < self._idle_since + _IDLE_S:
            if self._closed.wait(_LOOK_S):
                break
        return not self._closed.is_set()
