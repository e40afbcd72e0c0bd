"""Weights of earlier starts in a bounded folder. Many nodes, of many clusters, may share it.

    <sha256>        a slice by the hash of its bytes, which is checked when it is read; or tiles by the hash of all that
                    they are made from (kernels/tiles.py)
    <sha256>.part   the first bytes of a file, locked by the process that writes it

An error of the folder only disables the cache, with a line in the log. File names are safe: the message that a hash
came in was checked to hold a hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import re
import stat
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

_Bytes = npt.NDArray[np.uint8]

_NAME = re.compile(r"[0-9a-f]{64}(\.part)?")
_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux."""
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no symbolic link is followed, no pipe waited for


class KeptFiles:
    """The folder as one node has it while it loads and afterwards. Its threads may share it.

    most_bytes: bound of all files together; None: half of what the disk would have free without them.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._folder = folder
        self._writable, self._is_ours_alone = most_bytes != 0, False
        self._lock = threading.Lock()
        self._used: set[str] = set()  # by this node: not to be removed to make room
        self._others: list[tuple[float, int, str]] = []  # time of last use, bytes and name of the files that were here
        self._bytes = self._most_bytes = 0
        if not self._writable:
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = folder.stat()
            if own.st_uid != os.getuid() or own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                self._stop("other users can write there; empty it, and make it yours alone (mode 700)")
                return
            self._is_ours_alone = True
            for name in filter(_NAME.fullmatch, os.listdir(folder)):
                with suppress(FileNotFoundError):  # another node has renamed or removed it since
                    status = (folder / name).lstat()
                    if stat.S_ISREG(status.st_mode):
                        self._others.append((status.st_mtime, status.st_size, name))
                        self._bytes += status.st_size
            disk = os.statvfs(folder)
            free = disk.f_bavail * disk.f_frsize
        except OSError as error:
            self._give_up(error)
            return
        self._others.sort(reverse=True)
        self._most_bytes = (free + self._bytes) // 2 if most_bytes is None else most_bytes

    def has(self, sha256: str, size: int) -> bool:
        """Whether there is a file of `size` bytes, which counts as used now. `read` checks a slice's hash."""
        path = self._folder / sha256
        try:
            found = path.lstat()
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)
        self._used.add(sha256)
        return True

    def read(self, sha256: str, size: int) -> _Bytes | None:
        """The slice (bytes,); None if there is none. A file with another hash is removed."""
        path, data = self._folder / sha256, np.empty(size, np.uint8)
        try:
            descriptor = os.open(path, os.O_RDONLY | _FLAGS)
            try:
                n_bytes = _fill(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("%s cannot be read (%s); the root sends it again", path, error.strerror)
            return None
        if n_bytes == size and hashlib.sha256(data.data).hexdigest() == sha256:
            return data
        logger.warning("%s has been altered; the root sends it again", path)
        with suppress(OSError):
            path.unlink()
        return None

    def map(self, sha256: str, size: int) -> _Bytes | None:
        """The bytes (size,) of a file, mapped and read; they stay valid if it is removed.

        None if there is none, or if another user could have written it: its content is not checked.
        """
        if not self._is_ours_alone or not self.has(sha256, size):
            return None
        try:
            descriptor = os.open(self._folder / sha256, os.O_RDONLY | _FLAGS)
            try:
                pages = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # it has been removed, or replaced by a shorter one
            return None
        try:
            pages.madvise(_POPULATE_READ)
        except OSError:  # Linux before 5.14: they are read in the background
            pages.madvise(mmap.MADV_WILLNEED)
        return np.frombuffer(pages, np.uint8)

    def part(self, sha256: str, size: int, begin: bool) -> Part | None:
        """The stored part of a file, to be continued; with `begin`, a new one if there is none.

        None if there is none, another node writes it, or the cache is full or cannot be written.
        """
        path = self._folder / f"{sha256}.part"
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            with suppress(OSError):
                path.unlink()
        if not self._writable or not (begin or os.path.lexists(path)):
            return None
        with self._lock:
            self._used |= {sha256, path.name}
            if not self._make_room(size):
                return None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | _FLAGS | (os.O_CREAT if begin else 0), 0o600)
        except OSError as error:
            if begin or not isinstance(error, FileNotFoundError):  # else another node made it whole or removed it
                self._give_up(error)
            return None
        part = Part(self, path, descriptor)
        if part.is_ours(size):
            return part
        part.close()
        return None

    def _make_room(self, n_bytes: int) -> bool:
        """Remove the least recently used files until `n_bytes` fit. False if they cannot fit."""
        while self._bytes + n_bytes > self._most_bytes and self._others:
            _, size, name = self._others.pop()
            if name not in self._used:
                with suppress(OSError):
                    (self._folder / name).unlink()
                self._bytes -= size
        if self._bytes + n_bytes <= self._most_bytes:
            self._bytes += n_bytes
            return True
        self._stop(
            f"{self._most_bytes} bytes are all that it may hold (`weight_cache` in cluster.yaml, --cache of a worker)"
        )
        return False

    def _give_up(self, error: OSError) -> None:
        self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        if self._writable:
            logger.warning("no more weights are kept in %s for the next start: %s", self._folder, why)
        self._writable = False


class Part:
    """The first bytes of a file; further ones are appended. `keep` renames it when it is complete."""

    def __init__(self, cache: KeptFiles, path: Path, descriptor: int) -> None:
        self._cache, self._path, self._descriptor = cache, path, descriptor

    def is_ours(self, size: int) -> bool:
        """Whether it is a file that no other node writes, shorter than `size`; a longer one is emptied."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours, named = os.fstat(self._descriptor), self._path.lstat()
            if not stat.S_ISREG(ours.st_mode) or (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino):
                return False  # its writer has renamed it: it is whole
            if ours.st_size >= size:
                os.ftruncate(self._descriptor, 0)
        except OSError:
            return False
        return True

    def read(self, data: _Bytes) -> int:
        """Read the stored bytes into `data`. Returns their number."""
        try:
            return _fill(self._descriptor, data)
        except OSError:
            return 0

    def append(self, piece: _Bytes, on_disk: bool = False) -> bool:
        """Write the next bytes. False if that fails: the file is removed, and the cache takes no more.

        on_disk: wait until the disk has them. For bytes that nobody checks when they are read.
        """
        try:
            view = piece.data
            while view:
                view = view[os.write(self._descriptor, view) :]
            if on_disk:
                os.fdatasync(self._descriptor)
        except OSError as error:
            self._cache._give_up(error)
            self.discard()
            return False
        return True

    def clear(self) -> None:
        """Forget the stored bytes."""
        os.ftruncate(self._descriptor, 0)

    def keep(self) -> None:
        """Rename the complete file. The bytes of a slice have been checked against its hash."""
        try:
            self._path.replace(self._path.with_suffix(""))
        except FileNotFoundError:  # another node needed its room
            pass
        except OSError as error:
            self._cache._give_up(error)
        self.close()

    def discard(self) -> None:
        """Remove it."""
        with suppress(OSError):
            self._path.unlink()
        self.close()

    def close(self) -> None:
        """Leave it for the next start."""
        os.close(self._descriptor)


def _fill(descriptor: int, data: _Bytes) -> int:
    """Read from the file's beginning until `data` is full or the file ends. Returns the bytes read."""
    view, at = data.data, 0
    while at < len(view) and (n := os.preadv(descriptor, [view[at:]], at)):
        at += n
    return at
