"""The cache of compiled kernels: files that only this user can have written. Knows no compiler.

A file's name is a hash of all that its content depends on, and its kernel's name. The file begins with its own digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dllama_zmq.kernels.simd.host import host_cpu
from dllama_zmq.kernels.simd.registry import module_of

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_POLL_S = 0.05
_WAIT_S = 300.0
"""How long another process that compiles is waited for; then this one compiles for itself."""


def cache_folder() -> Path:
    """The cache: $XDG_CACHE_HOME/dllama-zmq/kernels, or under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "dllama-zmq" / "kernels"


def spare_folder() -> Path:
    """The cache until this computer restarts, if `cache_folder` cannot be used."""
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"dllama-zmq-kernels-{os.getuid()}"


def find(names: Sequence[str]) -> dict[str, bytes]:
    """The object files of those kernels of `names` that are in the cache and undamaged."""
    found: dict[str, bytes] = {}
    for folder in _folders():
        for name in names:
            code = None if name in found else _read(folder / _file_name(name))
            if code is not None:
                found[name] = code
    return found


def kept(names: Iterable[str]) -> set[str]:
    """Those kernels of `names` that have a file, damaged or not."""
    return {name for name in names if any((folder / _file_name(name)).exists() for folder in _folders())}


class Keeper:
    """Keeps what is compiled, in the first of both folders that takes it; warns once where that is not the first."""

    def __init__(self) -> None:
        self._folders = [cache_folder(), spare_folder()]
        self._obstacles: list[str] = []
        self._warned = False

    def keep(self, name: str, code: bytes, warn: Callable[[str], None]) -> None:
        """Keep the object file of a kernel."""
        while self._folders:
            reason = _write(self._folders[0], _file_name(name), hashlib.sha256(code).digest() + code)
            if not reason:
                break
            self._obstacles.append(f"{self._folders.pop(0)} ({reason})")
        if self._obstacles and not self._warned:
            self._warned = True
            now = "every start will compile them"
            if self._folders:
                now = f"they are in {self._folders[0]} until this computer restarts"
            warn(
                f"kernels cannot be kept in {' or '.join(self._obstacles)}: {now}; make {cache_folder()} a "
                "folder that you alone can write to, or set XDG_CACHE_HOME to another"
            )


@contextmanager
def only_builder(on_wait: Callable[[], None]) -> Iterator[None]:
    """Let one process of this user compile; others wait and call `on_wait`. Without a lockable folder, nobody waits."""
    for folder in (cache_folder(), spare_folder()):
        lock = _open_lock(folder)
        if lock is not None:
            break
    else:
        yield
        return
    try:
        until = time.monotonic() + _WAIT_S
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                on_wait()
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def _folders() -> list[Path]:
    """The folders whose content only this user can have written."""
    return [folder for folder in (cache_folder(), spare_folder()) if not _obstacle(folder)]


@cache
def _key(module: str) -> str:
    """A hash of the sources, the CPU and the versions that machine code comes from. module: if of another package."""
    digest = hashlib.sha256()
    for part in (*map(str.encode, host_cpu()), *map(release, ("numba", "llvmlite"))):
        digest.update(part + b"\0")
    found = find_spec(module) if module else None
    folders = [Path(__file__).parent, *([Path(found.origin).parent] if found and found.origin else [])]
    for source in (source for folder in folders for source in sorted(folder.glob("*.py"))):
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def release(package: str) -> bytes:
    """What says which release of `package` is installed: the file in which it keeps its version. To import
    importlib.metadata, which asks any package, takes 10 ms of every node's start."""
    found = find_spec(package)
    try:
        return Path(found.origin if found and found.origin else "").with_name("_version.py").read_bytes()
    except (OSError, ValueError):
        from importlib.metadata import version

        return version(package).encode()


def _file_name(name: str) -> str:
    return f"{_key(module_of(name))}-{name}.o"


def _read(path: Path) -> bytes | None:
    """A cached object file; None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(code).digest() != digest:
        logger.warning("%s is damaged; compiling again", path)
        return None
    return code


def _write(folder: Path, name: str, content: bytes) -> str:
    """Write a file; returns why it cannot be written in `folder`, or an empty text."""
    draft = folder / f".{name}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if obstacle := _obstacle(folder):
            return obstacle
        draft.write_bytes(content)
        draft.replace(folder / name)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        return error.strerror or str(error)
    return ""


def _open_lock(folder: Path) -> int | None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return None if _obstacle(folder) else os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def _obstacle(folder: Path) -> str:
    """Why machine code in `folder` could be another user's; empty if it cannot, or there is no folder."""
    try:
        link, found = folder.lstat(), folder.stat()
    except OSError as error:
        return "" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    if not stat.S_ISDIR(found.st_mode):
        return "no folder"
    for owner in (link.st_uid, found.st_uid):
        if owner != os.getuid():
            return f"it belongs to user {owner}, not to you ({os.getuid()})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users can write there, mode {stat.S_IMODE(found.st_mode):o}: empty it and make it 700"
    return ""
