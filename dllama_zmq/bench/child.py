"""Measure cases in a child process, so that no figure depends on an earlier measurement. The child is the root; its
workers are children of its own, connected over ipc.

Memory that an earlier measurement had freed doubled the prompt speed of a NumPy root, since the pages of its temporary
arrays were mapped already. The child gets its settings as an argument and prints messages on stdout, each a
line of JSON; it ends when its stdin does, since then its parent is gone.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress

import msgspec
from threadpoolctl import threadpool_limits

from dllama_zmq.bench.cases import BenchSettings
from dllama_zmq.bench.machine import MemoryReader
from dllama_zmq.bench.measure import Bench
from dllama_zmq.bench.rows import Row, case_row
from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.errors import ClusterError, WorkerLost
from dllama_zmq.formats import ModelFile, open_model
from dllama_zmq.host import in_words, usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.launch.children import child_environment
from dllama_zmq.launch.fleet import Fleet
from dllama_zmq.launch.launchers import LocalLauncher
from dllama_zmq.launch.parent_watch import at_end_of_stdin
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.node_config import Limits, WorkerConfig
from dllama_zmq.reporting import Reporter, Unit
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import DEFAULT_SEQ_LEN

_END_S = 10.0  # ending a frozen worker takes less
_LIMITS = Limits(step_s=600.0)  # long, because a slow worker is being measured; a dead one is noticed within seconds


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


@contextmanager
def running_nodes(
    settings: BenchSettings, model: ModelFile, reporter: Reporter, interrupts: Interrupts
) -> Iterator[Root]:
    """The root of `settings.nodes[0]`, ready. Its workers, sockets and folders are gone after the block.

    Raises ClusterError if a worker ends or does not join. WorkerLost from the block also says how the worker ended.
    """
    nodes = settings.nodes[0]
    workers = [WorkerConfig(name=f"worker{i}", threads=nodes.threads) for i in range(1, nodes.n_nodes)]
    names = [worker.name for worker in workers]
    root_settings = RootSettings(
        names=names,
        reserved=names,
        sync=settings.sync,
        kernels=settings.kernels,
        threads=nodes.threads,
        oversubscribed=nodes.all_threads > usable_cores(),
        max_seq_len=max(DEFAULT_SEQ_LEN, *(case.n_positions for case in settings.cases)),
        max_sequences=1 + max(case.parallel for case in settings.cases),
        limits=_LIMITS,
        profile=settings.profile,
    )

    def reading(done: int, total: int) -> None:
        reporter.activity(f"{nodes}: the root reads its part of the model", done, total)

    with ExitStack() as cleanup:
        paths = ClusterPaths.of(f"bench-{os.getpid()}-{secrets.token_hex(4)}") if workers else None
        if paths is not None:
            cleanup.callback(paths.remove)
        context = sockets.Context()
        cleanup.callback(context.destroy)  # `term` would wait forever for the sockets of a root that is half made
        endpoints = None if paths is None else Endpoints([paths.ipc("steps")], [paths.ipc("replies")])
        with interrupts.raised():
            root = Root(context, model, root_settings, endpoints, reading)
        cleanup.callback(root.close, "the bench is over")
        if paths is None:
            yield root
            return
        words = ["--cache", "0", "--model", str(model.path)]  # the bench leaves nothing behind
        launchers = [
            LocalLauncher(worker, paths, words, root_settings.oversubscribed, root.roster) for worker in workers
        ]
        fleet = Fleet(launchers, root.roster, _LIMITS.join_s)
        cleanup.callback(fleet.stop, _LIMITS.stop_s)
        join_until = time.monotonic() + _LIMITS.join_s

        def watch() -> None:
            if ended := fleet.first_ended():
                raise ClusterError(f"{ended} before it was ready")
            if root.any_worker_absent() and time.monotonic() > join_until:
                raise ClusterError(f"{root.missing_sentence()} after {_LIMITS.join_s:.0f} s")
            rows = root.progress()
            n_ready = sum(row.state.value == "ready" for row in rows)
            have, total = sum(row.sent_bytes + row.kept_bytes for row in rows), sum(row.total_bytes for row in rows)
            reporter.activity(f"{nodes}: {n_ready} of {len(rows)} workers ready", have, total)

        with interrupts.raised():
            root.wait_ready(join_until + _LIMITS.load_s, watch)
        try:
            yield root
        except WorkerLost as error:
            ended = fleet.first_ended()
            raise WorkerLost(f"{error}; {ended}" if ended else str(error)) from None


if __name__ == "__main__":
    main()
