"""The two locks of a cluster. The system releases them when the processes that hold them end, even by SIGKILL.

The root locks the file `lock` in the cluster's folder. Each command that uses the cluster shares a lock on the folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.paths import ClusterPaths

POLL_S = 0.05


@contextmanager
def in_use(paths: ClusterPaths, wait_s: float) -> Iterator[int]:
    """Mark the cluster as used for this block. A cluster of one command ends after its last user. Yields a descriptor.

    Raises ClusterError if the cluster is still ending after `wait_s`.
    """
    folder = os.open(paths.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + wait_s
        while not take(folder, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise ClusterError(f"{paths.run}: the cluster there has been ending for {wait_s:.0f} s; try again")
            time.sleep(POLL_S)
        yield folder
    finally:
        os.close(folder)


def used_by_others(folder: int) -> bool:
    """Whether another process is in `in_use`. If none is, none can enter it until this descriptor is closed."""
    return not take(folder, fcntl.LOCK_EX)


def await_last_user(paths: ClusterPaths) -> None:
    """Return when no process uses the cluster. From then on none can, until this process ends."""
    folder = os.open(paths.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(folder, fcntl.LOCK_EX)


def cleared(paths: ClusterPaths) -> bool:
    """Remove what a killed root left behind. Returns False, and removes nothing, if a root is running."""
    with suppress(FileNotFoundError):
        lock = os.open(paths.lock_file, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not take(lock, fcntl.LOCK_EX):
                return False
            paths.clear()
        finally:
            os.close(lock)
    return True


def is_up(paths: ClusterPaths) -> bool:
    """Whether a process holds the root's lock."""
    try:
        lock = os.open(paths.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # shared: two processes that look at once must not see each other as a root
        return not take(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def take(descriptor: int, kind: int) -> bool:
    """Take the lock of `descriptor`, LOCK_SH or LOCK_EX, if it is free; returns whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
