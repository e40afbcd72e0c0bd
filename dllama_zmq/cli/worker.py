"""`dllama-zmq worker`: one worker in this process, until its root or a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

from threadpoolctl import threadpool_limits
from typer import Argument, Option

from dllama_zmq import __version__
from dllama_zmq.bus.addresses import endpoint_of
from dllama_zmq.bus.sockets import Context
from dllama_zmq.cli.flag_kinds import number
from dllama_zmq.errors import UsageError
from dllama_zmq.host import require_open_files, usable_cores
from dllama_zmq.launch.parent_watch import at_end_of_stdin
from dllama_zmq.node_config import Ports
from dllama_zmq.own_code import signal_at_parents_end
from dllama_zmq.worker import Worker, WorkerSettings

_FILES = 12  # opened by libzmq and for the kernels' code, as counted in /proc


def worker(
    *,
    host: Annotated[
        str | None,
        Argument(metavar="HOST", help="The root's computer: a name or address, with :PORT where it is not 5570"),
    ] = None,
    root: Annotated[str | None, Option("--root", metavar="ADDRESS", help="The same, as a flag")] = None,
    name: Annotated[
        str, Option("--name", metavar="NAME", help="Which worker of the file to be; any free one if not given")
    ] = "",
    threads: Annotated[
        int | None, number("-t", "--threads", "--nthreads", help="Compute threads; all cores if not given")
    ] = None,
    leave_with_stdin: Annotated[bool, Option("--leave-with-stdin", hidden=True)] = False,
    oversubscribed: Annotated[bool, Option("--oversubscribed", hidden=True)] = False,
) -> None:
    """Be a worker of the cluster whose root is on HOST. Needs no model file: its weights come over the bus.

    Examples:
        dllama-zmq worker 192.168.1.10
        dllama-zmq worker pi1:5570 -t 3
    """
    if (host is None) == (root is None):
        raise UsageError("give the root's address once: dllama-zmq worker 192.168.1.10")
    try:
        address = endpoint_of(host or root or "", Ports().replies)
    except UsageError as error:
        raise UsageError(f"the root's address {error}") from None
    signal.signal(signal.SIGTERM, _leave)
    if leave_with_stdin:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the root
        signal_at_parents_end(signal.SIGKILL)
        at_end_of_stdin(lambda: os._exit(0))  # the root is gone
    with threadpool_limits(limits=1):  # the node has its own threads; BLAS must not add more
        threads = threads or usable_cores()
        require_open_files(_FILES + threads)
        settings = WorkerSettings(
            root=address, name=name, threads=threads, oversubscribed=oversubscribed, version=__version__
        )
        with Context() as context:
            Worker(context, settings).run()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
