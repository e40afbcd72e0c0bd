"""How far a root is that has no socket yet: in a file beside its lock, for the process that waits for it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import msgspec

from dllama_zmq.telling import Tells, Unit

_WRITE_EVERY_S = 0.2


class _Told(msgspec.Struct, frozen=True):
    text: str
    done: int
    total: int
    unit: Unit


class StartingFile:
    """A `Tells` that passes everything on to `tells` and keeps in `path` what goes on now."""

    def __init__(self, path: Path, tells: Tells) -> None:
        self._path, self._tells = path, tells
        self._text, self._next_write = "", 0.0

    def line(self, text: str) -> None:
        """Pass it on."""
        self._tells.line(text)

    def now(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        """Pass it on, and write it where something new begins or some time has passed."""
        self._tells.now(text, done, total, unit)
        if text == self._text and time.monotonic() < self._next_write:
            return
        self._text, self._next_write = text, time.monotonic() + _WRITE_EVERY_S
        draft = self._path.with_suffix(".draft")
        with suppress(OSError):  # on a full disk nobody is told how far it is, and it goes on
            draft.write_bytes(msgspec.json.encode(_Told(text, done, total, unit)))
            draft.replace(self._path)

    def remove(self) -> None:
        """The root can be asked now."""
        self._tells.now("")
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def tell_from(path: Path, tells: Tells) -> None:
    """Tell what the root has written to `path` last; nothing where there is none."""
    with suppress(OSError, msgspec.MsgspecError):
        told = msgspec.json.decode(path.read_bytes(), type=_Told)
        tells.now(told.text, told.done, told.total, told.unit)
