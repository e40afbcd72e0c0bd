"""A script in child processes that answer lines of JSON (`child_main.py`), for work that may never end.

An untrusted program, or a regular expression inside a library, can only be stopped by killing its process.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START_S = 30.0
"""Seconds for the start of the interpreter and for the first line, on a busy computer."""
BUSY_S = 10.0
"""Seconds that a request may take beyond its CPU time: nodes may compute on every core."""
_READ_BYTES = 1 << 16
_MAIN = Path(__file__).with_name("child_main.py")


class Children:
    """One process of a script per thread that asks at the same time, so a request that hangs delays no other; usually
    one.

    script: the file whose `answer` is called. first: the first request after every start. max_bytes: limit of one
    answer.
    """

    def __init__(self, script: Path, first: Mapping[str, Any] | None = None, max_bytes: int = 1 << 27) -> None:
        self._script, self._max_bytes = script, max_bytes
        self._first = b"" if first is None else _line(first)
        self._idle: list[Child] = []

    def ask(self, request: Mapping[str, Any], wait_s: float) -> dict[str, Any] | None:
        """The answer to `request`, as from `Child.ask`; for any thread.

        Raises TypeError, ValueError or RecursionError if it cannot be written as JSON.
        """
        line = _line(request)
        try:
            child = self._idle.pop()
        except IndexError:
            child = Child(self._script, self._first, self._max_bytes)
        try:
            return child.ask(line, wait_s)
        finally:
            self._idle.append(child)


class Child:
    """A child process, started at the first request, and again after it was killed. For one thread at a time."""

    def __init__(self, script: Path, first: bytes, max_bytes: int) -> None:
        self._script, self._first, self._max_bytes = script, first, max_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, line: bytes, wait_s: float) -> dict[str, Any] | None:
        """The answer to `line`. None if it takes longer than `wait_s` or the process dies; it is then killed.

        If the process answers its first line with a key `error`, that answer is returned.
        """
        if self._process is None or self._process.poll() is not None:
            refused = self._start()
            if refused is not None or self._process is None:
                return refused
            wait_s += 0 if self._first else START_S
        answer = self._exchange(line, wait_s)
        if answer is None:
            self._end()
        return answer

    def _start(self) -> dict[str, Any] | None:
        """Start the process. Returns None, or the answer to the first line if it has a key `error`."""
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_MAIN), str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._finalizer = weakref.finalize(self, _end, self._process)
        answer: dict[str, Any] | None = {}
        if self._first:
            answer = self._exchange(self._first, START_S)
        if answer is None or "error" in answer:
            self._end()
            return answer
        return None

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _exchange(self, line: bytes, wait_s: float) -> dict[str, Any] | None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        deadline = time.monotonic() + wait_s
        received = bytearray()
        to_send = memoryview(line)
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or len(received) > self._max_bytes:
                    return None
                for key, _ in selector.select(left_s):
                    try:
                        if key.fileobj is process.stdin:
                            to_send = to_send[os.write(process.stdin.fileno(), to_send) :]
                            if not to_send:
                                selector.unregister(process.stdin)
                        else:
                            data = os.read(process.stdout.fileno(), _READ_BYTES)
                            if not data:
                                return None
                            received += data
                    except (BlockingIOError, InterruptedError):
                        continue
                    except BrokenPipeError:
                        return None
        answer: dict[str, Any] = json.loads(received)
        return answer


def _line(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
