"""The folders of a cluster: sockets, state and logs. Knows no process and no socket."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct

from dllama_zmq.errors import ClusterError, UsageError
from dllama_zmq.node_config import NAME_PATTERN
from dllama_zmq.trust.files import HOME_VARIABLE

_Socket = Literal["steps", "replies", "clients", "front"]
MAX_SOCKET_PATH_BYTES = 100  # Linux allows 107; a few are left for what a transport may append


class ClusterPaths(Struct, frozen=True):
    """The two folders of one cluster, and the files in them."""

    run: Path
    logs: Path

    @classmethod
    def of(cls, cluster_name: str) -> ClusterPaths:
        """The folders of a cluster, created if they are missing. No other user can enter `run`.

        `$DLLAMA_ZMQ_HOME/{run,logs}/<name>` if that is set; else `$XDG_RUNTIME_DIR` or /tmp for `run`, and
        `$XDG_STATE_HOME` or ~/.local/state for `logs`. Raises ClusterError if a folder cannot be made or trusted.
        """
        if not re.search(NAME_PATTERN, cluster_name):
            raise UsageError(f"{cluster_name!r} is no valid cluster name; use up to 32 letters, digits, - and _")
        run_base, logs_base = folders()
        paths = cls(run_base / cluster_name, logs_base / cluster_name)
        for name in get_args(_Socket):
            paths.ipc(name)  # a path that is too long is refused before anything is created
        try:
            run_base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (run_base, paths.run):
                _own_folder(folder)
            paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ClusterError(
                f"{error.filename}: the folder cannot be made ({error.strerror}); "
                f"set {HOME_VARIABLE} to a folder that you can write"
            ) from error
        return paths

    @property
    def lock_file(self) -> Path:
        """The file that the root has locked."""
        return self.run / "lock"

    @property
    def cluster_file(self) -> Path:
        """The record of a running cluster: written when clients can reach the root, removed when it goes down."""
        return self.run / "cluster.json"

    @property
    def started_file(self) -> Path:
        """The record of the last start and its progress. The logs beside it are of that start."""
        return self.logs / "cluster.json"

    def begin_logs(self) -> None:
        """Rename the logs of the previous run, and remove older ones."""
        for path in self.logs.glob("*.log"):
            with writing(path):
                path.replace(path.with_suffix(".log.1"))

    def remove(self) -> None:
        """Remove both folders. For names that are not used again."""
        for folder in (self.logs, self.run):
            shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove everything but the lock from `run`. The caller holds the lock."""
        for path in (self.cluster_file, *self.run.glob("*.sock")):
            path.unlink(missing_ok=True)

    def log(self, node: str) -> Path:
        """The log of one node."""
        return self.logs / f"{node}.log"

    def ipc(self, name: _Socket) -> str:
        """The address of one of the root's sockets for this computer. Raises ClusterError if its path is too long."""
        path = self.run / f"{name}.sock"
        n_bytes = len(os.fsencode(path))
        if n_bytes > MAX_SOCKET_PATH_BYTES:
            raise ClusterError(
                f"{path}: {n_bytes} bytes are too long for a socket; at most {MAX_SOCKET_PATH_BYTES}; "
                f"set {HOME_VARIABLE} to a shorter folder"
            )
        return f"ipc://{path}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a ClusterError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ClusterError(
            f"{path}: cannot be written ({error.strerror}); check its folder and the room on its disk, or set "
            f"{HOME_VARIABLE} to another folder"
        ) from error


def as_text(path: Path) -> str:
    """A path for people and messages. File names are read as UTF-8 in any locale; invalid bytes become ?."""
    return os.fsencode(path).decode("utf-8", "replace")


def all_cluster_paths() -> Iterator[ClusterPaths]:
    """The folders of each cluster that is or was running here. Creates none."""
    run_base, logs_base = folders()
    with contextlib.suppress(OSError):
        if run_base.lstat().st_uid != os.getuid():  # in /tmp, another user may have made it
            return
        for folder in sorted(run_base.iterdir()):
            yield ClusterPaths(folder, logs_base / folder.name)


def chat_history() -> Path:
    """The file of earlier chats' input. Its folder is created if it is missing; raises OSError if it cannot be."""
    _, logs = folders()
    folder = logs.parent if os.environ.get(HOME_VARIABLE) else logs
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "chat.history"  # a cluster's name has no dot


def cache_folder(kind: str) -> Path:
    """The folder of a cache that outlives runs; it need not exist.

    `$DLLAMA_ZMQ_HOME/<kind>` if that is set; else `$XDG_CACHE_HOME/dllama-zmq/<kind>`, or under ~/.cache.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return _expanded(home) / kind
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else _expanded("~/.cache")) / "dllama-zmq" / kind


def folders() -> tuple[Path, Path]:
    """The folders that hold the clusters' folders: for `run` and for `logs`."""
    if home := os.environ.get(HOME_VARIABLE):
        base = _expanded(home)
        return base / "run", base / "logs"
    state = os.environ.get("XDG_STATE_HOME", "")
    logs = Path(state) if os.path.isabs(state) else _expanded("~/.local/state")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if _is_usable_runtime(runtime):
        return Path(runtime) / "dllama-zmq", logs / "dllama-zmq"
    return Path(f"/tmp/dllama-zmq-{os.getuid()}"), logs / "dllama-zmq"


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ClusterError(
            f"{text}: no such home folder; set {HOME_VARIABLE} to a folder that you can write"
        ) from error


def _is_usable_runtime(folder: str) -> bool:
    # After su or sudo, the variable still names the other user's folder.
    try:
        return os.path.isabs(folder) and os.path.isdir(folder) and os.stat(folder).st_uid == os.getuid()
    except OSError:
        return False


def _own_folder(folder: Path) -> None:
    """Make `folder` for this user only. An existing one must be ours and no link: in /tmp anyone can create one."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        raise ClusterError(f"{folder}: is {kind}; remove it, or set {HOME_VARIABLE} to a folder of your own")
    if found.st_uid != os.getuid():
        raise ClusterError(
            f"{folder}: belongs to user {found.st_uid}, not to you ({os.getuid()}); "
            f"set {HOME_VARIABLE} to a folder of your own"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
