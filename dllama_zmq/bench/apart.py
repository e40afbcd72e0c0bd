"""A job in a process of its own, so that a figure does not depend on what was done before it.

It would: memory that an earlier job had left to the allocator doubled the speed of a NumPy root's prompts, for the
pages of its temporaries were not taken from the system anew. So each root begins as that of a cluster does. The job,
and then nothing, goes to the child's stdin, whose end says that its owner is gone; messages come back, one a line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, TypeAlias

import msgspec
from msgspec import Struct

from dllama_zmq.bench.jobs import CaseDone, Job, Machine, NodesJob, Outcome, perform
from dllama_zmq.errors import ClusterError, DllamaError
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.launch.fleet import child_environment
from dllama_zmq.launch.owner import at_end_of_stdin
from dllama_zmq.own_code import own_code
from dllama_zmq.telling import Tells, Unit

_END_S = 10.0  # more than a frozen worker takes to be ended


class Told(Struct, frozen=True, tag=True):
    """A line for the user."""

    text: str


class Now(Struct, frozen=True, tag=True):
    """What goes on from here."""

    text: str
    done: int
    total: int
    unit: Unit


class Failed(Struct, frozen=True, tag=True):
    """The job ended with this error."""

    text: str


_Message: TypeAlias = Machine | CaseDone | Told | Now | Failed


def run_apart(job: Job, take: Callable[[Outcome], None], tells: Tells, interrupts: Interrupts) -> None:
    """Have `job` performed; `take` is called with each outcome as soon as it is known.

    Raises ClusterError with what the job's error said. Whatever happens, the process and its children are gone then.
    """
    environment = child_environment() if isinstance(job, NodesJob) else own_code()
    # In a session of its own: the terminal's Ctrl-C is for this process, which ends the job in its own time.
    process = subprocess.Popen(
        [sys.executable, "-m", "dllama_zmq.bench.apart"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with interrupts.raised():
            with suppress(BrokenPipeError):  # it has ended already, which is told below
                process.stdin.write(msgspec.json.encode(job) + b"\n")
                process.stdin.flush()
            for line in process.stdout:
                _take(msgspec.json.decode(line, type=_Message), take, tells)
            code = process.wait(_END_S)
    finally:
        _end(process)
    if code:
        raise ClusterError(f"the process that measures ended with {'signal' if code < 0 else 'exit code'} {abs(code)}")


def _take(message: _Message, take: Callable[[Outcome], None], tells: Tells) -> None:
    if isinstance(message, Failed):
        raise ClusterError(message.text)
    if isinstance(message, Now):
        tells.now(message.text, message.done, message.total, message.unit)
    elif isinstance(message, Told):
        tells.line(message.text)
    else:
        take(message)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a job that has not ended by itself, and wait until it has cleared away what it had."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


class _Relay:
    """The `Tells` of the child."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def line(self, text: str) -> None:
        self.send(Told(text))

    def now(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        self.send(Now(text, done, total, unit))

    def send(self, message: _Message) -> None:
        self._pipe.write(msgspec.json.encode(message) + b"\n")
        self._pipe.flush()


def main() -> None:
    """Be the child: perform the job that stdin names."""
    relay = _Relay(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed must not stand among the messages
    interrupts = Interrupts()
    with suppress(BrokenPipeError), interrupts.caught():  # the owner is gone: there is nobody to tell
        line = sys.stdin.buffer.readline()
        at_end_of_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            perform(msgspec.json.decode(line, type=Job), relay.send, relay, interrupts)
        except DllamaError as error:
            relay.send(Failed(str(error)))
        except BrokenPipeError:
            raise
        except OSError as error:
            relay.send(Failed(f"{error.filename or 'the system'}: {error.strerror or error}"))
        except Exception as error:
            relay.send(Failed(f"a defect of dllama-zmq: {type(error).__name__}: {error}; please report it"))


if __name__ == "__main__":
    main()
