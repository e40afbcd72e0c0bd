"""Findings, and checks that yield them. A check ends at its deadline, whatever it meets."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from dllama_zmq.host import in_words

Level = Literal["ok", "warning", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """A fact about something, with its number, and what to do; `cure` is empty if nothing needs to be done."""

    level: Level
    about: str
    text: str
    cure: str = ""


def ok(about: str, text: str) -> Finding:
    """A finding that all is well."""
    return Finding("ok", about, text)


def warning(about: str, text: str, cure: str) -> Finding:
    """A finding that something works, but slower or less safely than it could."""
    return Finding("warning", about, text, cure)


def problem(about: str, text: str, cure: str) -> Finding:
    """A finding that something will not work."""
    return Finding("problem", about, text, cure)


class Check(Struct, frozen=True):
    """One check. doing: what it does, for people who wait. look: takes `wait_s` at most, or is abandoned."""

    about: str
    doing: str
    wait_s: float
    look: Callable[[], Iterable[Finding]]


def examined(check: Check) -> Iterator[Finding]:
    """Yield the findings of a check as they come. A failure or a missed deadline is a finding too.

    The check runs in a thread of its own, because a name or a disk that does not answer cannot be interrupted. A thread
    that hangs is left behind.
    """
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            for one in check.look():
                found.put(one)
        except Exception as error:
            found.put(problem(check.about, f"the check failed: {in_words(error)}", ""))
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
