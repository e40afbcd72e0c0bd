"""The folder of keys. A file is read only if no other user could have written it, and is written atomically."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dllama_zmq.errors import TrustError

HOME_VARIABLE = "DLLAMA_ZMQ_HOME"
MAX_FILE_BYTES = 1 << 20
_LOCK_S = 5.0
_POLL_S = 0.02


def folder() -> Path:
    """`$DLLAMA_ZMQ_HOME/keys` if that is set, else `$XDG_CONFIG_HOME/dllama-zmq` or ~/.config/dllama-zmq.

    It need not exist. Raises TrustError if the user has no home folder.
    """
    try:
        if home := os.environ.get(HOME_VARIABLE):
            return Path(home).expanduser().absolute() / "keys"
        config = os.environ.get("XDG_CONFIG_HOME", "")
        base = Path(config) if os.path.isabs(config) else Path("~/.config").expanduser()
        return base / "dllama-zmq"
    except RuntimeError as error:
        raise TrustError(f"there is no home folder for keys; set {HOME_VARIABLE} to a folder of your own") from error


def read_private(path: Path, secret: bool = True) -> str | None:
    """The text of a file that only this user can write; None if there is none.

    secret: no other user may read it either. Raises TrustError with the command that corrects it.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise TrustError(_link(path)) from None
        raise _unreadable(path, error) from error
    try:
        _check(path, os.fstat(descriptor), 0o077 if secret else 0o022)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise TrustError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; it is no file of keys: {_move_away(path)}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise TrustError(f"{path}: is not text; it is no file of keys: {_move_away(path)}") from None


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600; readers see either the old content or the new. The caller holds `locked`."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.replace(draft, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(draft)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let no other process write `path` during this block. Creates its folder, for this user only, if it is missing."""
    try:
        own_folder(folder())
        own_folder(path.parent)
        lock = os.open(folder() / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        deadline = time.monotonic() + _LOCK_S
        while not _take(lock):
            if time.monotonic() > deadline:
                raise TrustError(f"{path}: another process has been writing it for {_LOCK_S:.0f} s; try again")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def own_folder(path: Path) -> None:
    """Make the folder for this user only. Raises TrustError if another user owns it or can write in it; OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.stat()  # a link to one's own folder is fine
    if found.st_uid != os.geteuid():
        raise TrustError(_foreign(path, found.st_uid))
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise TrustError(
            f"{path}: other users can write in this folder (mode {stat.S_IMODE(found.st_mode):04o}), so they could "
            f"replace keys; make it yours alone: chmod 700 {shlex.quote(str(path))}"
        )


def stamp(path: Path) -> tuple[int, ...]:
    """A value that differs after each change of the file; empty if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def lines_of(text: str) -> list[tuple[int, list[str]]]:
    """The words of each line with its number, from 1, without empty lines and comments (#)."""
    numbered = enumerate(text.splitlines(), 1)
    return [(number, line.split()) for number, line in numbered if line.strip() and not line.lstrip().startswith("#")]


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check(path: Path, found: os.stat_result, forbidden: int) -> None:
    quoted, mode = shlex.quote(str(path)), stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise TrustError(f"{path}: is {kind}; expected a file of keys: {_move_away(path)}")
    if found.st_uid != os.geteuid():
        raise TrustError(_foreign(path, found.st_uid))
    if mode & forbidden:
        what = "read this secret" if mode & forbidden & 0o044 else "write this file"
        raise TrustError(
            f"{path}: other users can {what} (mode {mode:04o}, expected 0600); make it yours alone: chmod 600 {quoted}"
        )


def _link(path: Path) -> str:
    target, quoted = path.resolve(), shlex.quote(str(path))
    cure = f"cp --remove-destination {shlex.quote(str(target))} {quoted} && chmod 600 {quoted}"
    if not target.is_file():
        cure = f"rm {quoted}"
    return f"{path}: is a symbolic link; expected a file of keys, because a link can be redirected; replace it: {cure}"


def _foreign(path: Path, owner: int) -> str:
    own = os.geteuid()
    return f"{path}: belongs to user {owner}, not to you ({own}); take it: sudo chown {own} {shlex.quote(str(path))}"


def _move_away(path: Path) -> str:
    return f"move it away: mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"


def _unreadable(path: Path, error: OSError) -> TrustError:
    return TrustError(
        f"{path}: cannot be read ({error.strerror}); check its permissions and those of its folder, or set "
        f"{HOME_VARIABLE} to a folder of your own"
    )


def _unwritable(path: Path, error: OSError) -> TrustError:
    where = error.filename or path
    return TrustError(
        f"{path}: cannot be written ({where}: {error.strerror}); check the folder and the room on its disk, or set "
        f"{HOME_VARIABLE} to a folder of your own"
    )
