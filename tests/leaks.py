"""What a test may leave behind in its own process: threads, sockets, pipes, child processes. From Linux's /proc."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = Path("/proc/self")
_WAIT_S = 20.0
"""For what is ending already."""


def held() -> Counter[str]:
    """Every thread, socket, pipe and child process of this process, named; equal names are counted.

    Files are left out: a mapped one stays open as long as any array of it, and pytest keeps fixtures for longer.
    """
    found = Counter(f"thread {thread.name}" for thread in threading.enumerate())
    for link in (_FOLDER / "fd").glob("*"):
        with suppress(OSError):  # the one that lists this folder
            name = os.readlink(link)
            found[f"open {name}"] += not name.startswith("/")
    for children in (_FOLDER / "task").glob("*/children"):
        with suppress(OSError):
            found.update(f"process {pid}" for pid in children.read_text().split() if not _has_ended(pid))
    return +found


def _has_ended(pid: str) -> bool:
    """Whether a child is only a number that waits to be asked for; Python asks when it starts the next process."""
    return (_FOLDER.parent / pid / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


@contextmanager
def nothing_left() -> Iterator[None]:
    """AssertionError where this process holds more after the block than before it."""
    before = held()
    yield
    until = time.monotonic() + _WAIT_S
    while left := held() - before:
        if time.monotonic() > until:
            raise AssertionError(f"left behind: {', '.join(sorted(left))}")
        gc.collect()
        time.sleep(0.02)  # between two looks
