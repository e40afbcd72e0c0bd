"""A cluster's two locks. The system releases them when the processes that hold them end, even by SIGKILL.

The root locks the file `lock` in the cluster's folder. Each call that uses the cluster shares a lock on the folder.
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
    """In this block the cluster counts as used; a cluster of a call ends after its last user. Yields a descriptor.

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
    """Whether another process is in `in_use`; if not, none can be until this descriptor is closed."""
    return not take(folder, fcntl.LOCK_EX)


def await_last_user(paths: ClusterPaths) -> None:
    """Return when no process uses the cluster. From then on none can, until this process ends."""
    folder = os.open(paths.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(folder, fcntl.LOCK_EX)


def cleared(paths: ClusterPaths) -> bool:
    """Remove what a killed root left behind. Returns False, and does nothing, if a root is running."""
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
    """Whether a process holds the lock there."""
    try:
        lock = os.open(paths.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not take(lock, fcntl.LOCK_SH)  # shared: two who look must not take each other for a root
    finally:
        os.close(lock)


def take(descriptor: int, kind: int) -> bool:
    """Take the lock behind `descriptor`, LOCK_SH or LOCK_EX, if it is free; whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
