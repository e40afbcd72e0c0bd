"""A command at a terminal of 80 columns: what it writes there, and when."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 80
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def without_codes(seen: bytes) -> str:
    """What was written to a terminal, without its control codes."""
    return _CONTROL.sub("", seen.decode(errors="replace")).replace("\r\n", "\n")


def lines_left(seen: bytes) -> list[str]:
    """The lines that are left of what was written: what has been written over is gone."""
    lines = [""]
    for piece in re.split(r"(\r\n|\r|\x1b\[2K|\x1b\[1A)", seen.decode(errors="replace")):
        if piece == "\r\n":
            lines.append("")
        elif piece in ("\r", "\x1b[2K"):
            lines[-1] = "" if piece == "\x1b[2K" else lines[-1]
        elif piece == "\x1b[1A":
            lines.pop()
        else:
            lines[-1] += _CONTROL.sub("", piece)
    return lines


@dataclass
class Terminal:
    """A command whose stdout and stderr are one terminal. Read it with `until` or `to_the_end`."""

    process: subprocess.Popen[bytes]
    descriptor: int
    seen: bytes = b""
    times: list[float] = field(default_factory=list)
    """When something came."""

    def until(self, condition: Callable[[str], object], wait_s: float) -> str:
        """What has been written when `condition` holds of it. AssertionError after `wait_s`, or at its end."""
        deadline = time.monotonic() + wait_s
        while not condition(self.text()):
            assert time.monotonic() < deadline, f"waited {wait_s} s: {self.seen!r}"
            assert self._read(deadline), f"it ended: {self.seen!r}"
        return self.text()

    def to_the_end(self, wait_s: float) -> int:
        """Read until the command has ended; its exit code."""
        deadline = time.monotonic() + wait_s
        while self._read(deadline):
            assert time.monotonic() < deadline, f"it did not end within {wait_s} s: {self.seen!r}"
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def text(self) -> str:
        """Everything that was written, without control codes; a line that was written over is still in it."""
        return without_codes(self.seen)

    def screen(self) -> list[str]:
        """The lines that are left: what has been written over is gone."""
        return lines_left(self.seen)

    def type(self, keys: str) -> None:
        """Press these keys; "\r" is Enter. The command must have been started with `typing`."""
        os.write(self.descriptor, keys.encode())

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self.descriptor)
        self.descriptor = -1

    def longest_silence_s(self) -> float:
        """Between two moments in which something came."""
        return max((later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)), default=0.0)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self.descriptor, 65536) if ready else b""
        except OSError:  # nobody has the other end any more
            return False
        self.seen += data
        self.times.append(time.monotonic())
        return bool(data) or not ready


@contextmanager
def at_terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], typing: bool = False
) -> Iterator[Terminal]:
    """`command` running at a terminal; killed at the end of the block where it still is.

    typing: stdin is the terminal too, and Ctrl-C on it is a signal; else there is no stdin.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs if typing else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={"TERM": "xterm-256color", **environment},
        preexec_fn=_own_terminal if typing else None,
    )
    os.close(theirs)
    terminal = Terminal(process, ours)
    try:
        yield terminal
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if terminal.descriptor >= 0:
            os.close(ours)


def _own_terminal() -> None:
    """In a new process: stdin is the terminal of its own session."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
