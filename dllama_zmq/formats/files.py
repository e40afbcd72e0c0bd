"""Opens, reads and replaces files, with errors of this package. Knows no format."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.typed import typed_json

MAX_JSON_BYTES = 1 << 23
"""Twice the size of the index of Qwen3 235B with its 37,000 tensors."""
_LFS_POINTER = b"version https://git-lfs"
_MAX_POINTER_BYTES = 1 << 10
T = TypeVar("T")


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file, open for reading, and its size in bytes.

    Raises FormatError if it is missing, unreadable, not a regular file (a pipe would block), or a pointer of git-lfs.
    """
    try:
        # Non-blocking: opening a pipe without a writer would block before it can be refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FormatError(f"{path} cannot be opened: {error.strerror}. Check the path and its permissions.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FormatError(f"{path} is not a regular file, so it cannot be mapped. Give the file itself.")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size <= _MAX_POINTER_BYTES and file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise FormatError(
                f"{path} is a pointer of git-lfs, not the file itself. Fetch it: run `git lfs pull` in its folder."
            )
        file.seek(0)
        yield file, status.st_size


def read_whole(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file. Raises FormatError if there are more than `max_bytes`."""
    with open_regular(path) as (file, n_bytes):
        if n_bytes > max_bytes:
            raise FormatError(
                f"{path}: {n_bytes} bytes long; a file of this kind has at most {max_bytes}. Give another file."
            )
        return file.read(n_bytes)


def read_json(path: Path, kind: type[T], max_bytes: int = MAX_JSON_BYTES) -> T:
    """A JSON file as a `kind` of msgspec; other keys are ignored. Raises FormatError."""
    return typed_json(read_whole(path, max_bytes), kind, str(path))


def check_replaceable(path: Path) -> None:
    """Raise UsageError if `path` exists and is not a regular file."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file and would be replaced by one; choose another name")


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` if the block ends without an error, else is removed.

    Raises UsageError if the file cannot be created, or if `path` is a device, a pipe or a folder: as root, the
    rename would replace even /dev/null.
    """
    check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            file = open(temporary, "xb")  # noqa: SIM115 - closed below; only errors of opening it are UsageErrors
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}. Check its folder, {path.absolute().parent}."
            ) from error
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C, too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
