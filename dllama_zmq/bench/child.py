"""Measure cases in a child process, so that no figure depends on an earlier measurement.

Memory that an earlier measurement had freed doubled the prompt speed of a NumPy root, since the pages of its temporary
arrays were mapped already. The child gets its settings as an argument and prints messages on stdout, each a
line of JSON; it ends when its stdin does, since then its parent is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress

import msgspec
from threadpoolctl import threadpool_limits

from dllama_zmq.bench.cases import BenchSettings
from dllama_zmq.bench.measure import Bench
from dllama_zmq.bench.nodes import running_nodes
from dllama_zmq.bench.reader import MemoryReader
from dllama_zmq.bench.rows import Row, case_row
from dllama_zmq.errors import ClusterError
from dllama_zmq.formats import open_model
from dllama_zmq.host import in_words
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.launch.children import child_environment
from dllama_zmq.launch.parent_watch import at_end_of_stdin
from dllama_zmq.reporting import Reporter, Unit

_END_S = 10.0  # ending a frozen worker takes less


def measure_in_child(settings: BenchSettings, reporter: Reporter, interrupts: Interrupts) -> Generator[Row, None, None]:
    """Measure the cases on `settings.nodes[0]`; yields the figures of each case, by field of Row, once they are known.

    settings.model: a path. Raises ClusterError with the child's error. The child and its workers are gone afterwards.
    """
    # In a session of its own: Ctrl-C in the terminal is for this process, which then ends the child.
    command = [sys.executable, "-m", "dllama_zmq.bench.child", msgspec.json.encode(settings).decode()]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=child_environment(), start_new_session=True)
    with child:
        try:
            while True:
                with interrupts.raised():
                    line = child.stdout.readline() if child.stdout else b""
                    if not line:
                        code = child.wait(_END_S)
                        break
                action, *values = msgspec.json.decode(line)
                if action == "row":
                    yield values[0]
                elif action == "error":
                    raise ClusterError(values[0])
                else:
                    (reporter.line if action == "line" else reporter.activity)(*values)
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_S)
            child.kill()
    if code:
        raise ClusterError(f"the process that measures ended with {'signal' if code < 0 else 'exit code'} {abs(code)}")


class _Parent:
    """Sends messages to the parent process. A `Reporter`."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb", 0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else that is printed gets between the messages

    def line(self, text: str) -> None:
        self.send("line", text)

    def activity(self, text: str, done: int = 0, total: int = 0, unit: Unit = "B") -> None:
        self.send("activity", text, done, total, unit)

    def send(self, action: str, *values: object) -> None:
        self._pipe.write(msgspec.json.encode([action, *values]) + b"\n")


def main() -> None:
    """Be the child."""
    parent, interrupts = _Parent(), Interrupts()
    with suppress(BrokenPipeError), interrupts.caught():  # the parent is gone
        at_end_of_stdin(lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            _measure(msgspec.json.decode(sys.argv[1], type=BenchSettings), parent, interrupts)
        except BrokenPipeError:
            raise
        except Exception as error:
            parent.send("error", in_words(error))


def _measure(settings: BenchSettings, parent: _Parent, interrupts: Interrupts) -> None:
    nodes, title = settings.nodes[0], str(settings.nodes[0])
    with (
        threadpool_limits(limits=1),  # the root's own threads share the work; BLAS must not add its own
        open_model(str(settings.model)) as model,
        running_nodes(settings, model, parent, interrupts) as root,
        interrupts.raised(),
    ):
        reader = MemoryReader(nodes.all_threads, root.kernels if nodes.n_nodes == 1 else None)
        bench = Bench(root, parent, title, reader)
        for case in settings.cases:
            measured = bench.run(case, settings.repetitions)
            parent.send("row", case_row(nodes, root.plan, measured))
        parent.activity(f"{title}: ending")


if __name__ == "__main__":
    main()
