"""The child processes of this package: how they start, log and end."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from dllama_zmq.launch.paths import ClusterPaths, writing
from dllama_zmq.own_code import own_code
from dllama_zmq.threads import ONE_BLAS_THREAD

logger = logging.getLogger(__name__)

_MAX_PAUSE_S = 30.0
_SOUND_AFTER_S = 60.0  # a child that lived this long starts with no deaths again
MAX_LOG_BYTES = 8 << 20


class Child(Struct, frozen=True):
    """A process that this one has started. It holds a pipe to its stdin, and no terminal's signal reaches it.

    log_start: the length of its log at its start, in bytes.
    """

    process: subprocess.Popen[bytes]
    log: Path
    log_start: int

    @classmethod
    def start(cls, name: str, words: Sequence[str], paths: ClusterPaths, pass_fds: Sequence[int] = ()) -> Child:
        """Start `dllama-zmq WORDS`, which writes to the log `name`."""
        command = [sys.executable, "-m", "dllama_zmq", *words]
        with open_log(paths, name) as log:
            return cls._start(command, log, stdout=log, env=child_environment(), pass_fds=pass_fds)

    @classmethod
    def start_quiet(cls, name: str, command: Sequence[str], paths: ClusterPaths) -> Child:
        """Start another program. Its stderr goes to the log `name`; its stdout is dropped."""
        with open_log(paths, name) as log:
            return cls._start(command, log, stdout=subprocess.DEVNULL)

    @classmethod
    def _start(cls, command: Sequence[str], log: BinaryIO, **how: Any) -> Child:
        log_start = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, start_new_session=True, **how)
        return cls(process, Path(log.name), log_start)

    def ending(self) -> str:
        """How it ended, with the last error in its log; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        error = _last_error(self.said())
        return (f"signal {-code}" if code < 0 else f"exit code {code}") + (f" ({error})" if error else "")

    def said(self) -> str:
        """Everything that it has written to its log since its start."""
        return _text(self.log, self.log_start)

    def write(self, data: bytes) -> None:
        """Write to its stdin, if it is alive."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def close_stdin(self) -> None:
        """Close the pipe to it."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def terminate(self) -> None:
        """Ask it to end."""
        self.process.terminate()
        self.close_stdin()


class Restarts(Struct):
    """When a child that keeps ending starts again: after a pause that doubles with each end in a row.

    ending: how it ended last. deaths: in a row. next_start: None while its end has not been seen.
    """

    started: float
    ending: str = ""
    deaths: int = 0
    next_start: float | None = None

    def note(self, ending: str, now: float) -> None:
        """The child has ended."""
        self.ending = ending
        self.deaths = self.deaths + 1 if now - self.started < _SOUND_AFTER_S else 1
        self.next_start = now + (0.0 if self.deaths == 1 else min(_MAX_PAUSE_S, 2.0 ** (self.deaths - 2)))

    def note_start(self, now: float) -> None:
        """The child was started again."""
        self.started, self.next_start = now, None


def await_ends(children: Mapping[str, Child], wait_s: float) -> list[str]:
    """Wait up to `wait_s` for children that were asked to end, then kill the rest. Returns the names of the killed."""
    deadline, killed = time.monotonic() + wait_s, []
    for name, child in children.items():
        try:
            child.process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("killing %s: it did not leave within %.1f s", name, wait_s)
            child.process.kill()
            child.process.wait()
            killed.append(name)
    return killed


def last_error(log: Path) -> str:
    """The last error in a node's log; empty if there is none."""
    return _last_error(_text(log, 0))


def warnings(log: Path) -> list[str]:
    """The sentences that a root has in its log for the people who start its cluster."""
    lines = _text(log, 0).splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def _text(log: Path, start: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(start)
            return file.read(MAX_LOG_BYTES).decode(errors="replace")
    except FileNotFoundError:  # the log was deleted
        return ""


def _last_error(text: str) -> str:
    errors = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else ""


def open_log(paths: ClusterPaths, node: str) -> BinaryIO:
    """Open the log of a node for appending; a log that is too long is renamed first."""
    path = paths.log(node)
    with writing(path):
        paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")


def child_environment() -> dict[str, str]:
    """The environment of a node."""
    return own_code() | ONE_BLAS_THREAD
