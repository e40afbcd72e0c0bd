"""A finding is one line; a check gives some of them before its deadline, whatever it meets."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from dllama_zmq.host import in_words

Level = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """What was found about something, with its number, and what to do; `cure` is empty where nothing is to be done."""

    level: Level
    about: str
    text: str
    cure: str = ""


def ok(about: str, text: str) -> Finding:
    """All is well."""
    return Finding("ok", about, text)


def warning(about: str, text: str, cure: str) -> Finding:
    """It works, but slower or less safely than it could."""
    return Finding("warning", about, text, cure)


def problem(about: str, text: str, cure: str) -> Finding:
    """Something will not work."""
    return Finding("problem", about, text, cure)


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at. doing: what that is, for people who wait. look: takes `wait_s` at most, or is left."""

    about: str
    doing: str
    wait_s: float
    look: Callable[[], Iterable[Finding]]


def examined(check: Check) -> Iterator[Finding]:
    """The findings of a check as they come. One that fails, or lasts beyond its deadline, is a finding itself.

    It runs in a thread of its own, for a name or a disk that does not answer cannot be broken off; such a thread is
    left behind.
    """
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            for one in check.look():
                found.put(one)
        except Exception as error:
            found.put(problem(check.about, f"cannot be looked at: {in_words(error)}", ""))
        found.put(None)

    threading.Thread(target=look, name=check.about, daemon=True).start()
    until = time.monotonic() + check.wait_s
    while True:
        try:
            one = found.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            hangs = f"no answer within {check.wait_s:.0f} s while {check.doing}"
            yield problem(check.about, hangs, "see what hangs there: a disk, a name server, a busy computer")
            return
        if one is None:
            return
        yield one
