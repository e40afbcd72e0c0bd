"""A word now and then while something goes on that says nothing itself. Knows no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def telling(say: Callable[[str], None], what: str, every_s: float) -> Iterator[None]:
    """Say `what`, and for how long it has been so, every `every_s` seconds until the block ends; from a thread."""
    start, ended = time.monotonic(), threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            say(f"{what} ({time.monotonic() - start:.0f} s)")

    thread = threading.Thread(target=repeat, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
