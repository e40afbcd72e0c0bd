"""`dllama-zmq worker`: one worker in this process, until its root or a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import zmq
from threadpoolctl import threadpool_limits

from dllama_zmq import __version__
from dllama_zmq.bus.addresses import endpoint_of
from dllama_zmq.cluster import Ports
from dllama_zmq.errors import UsageError
from dllama_zmq.host import require_open_files, usable_cores
from dllama_zmq.launch.owner import at_end_of_stdin, die_with_parent
from dllama_zmq.worker import Worker, WorkerSettings

_FILES = 12  # opened by libzmq and for the kernels' code, as counted in /proc


def run(root: str, name: str, threads: int | None, leave_with_stdin: bool, crowded: bool) -> None:
    """Serve the root at `root`: a host, with its port where that is not 5570.

    With `leave_with_stdin` the end of stdin ends the worker.
    """
    try:
        address = endpoint_of(root, Ports().replies)
    except UsageError as error:
        raise UsageError(f"the root's address {error}") from None
    signal.signal(signal.SIGTERM, _leave)
    if leave_with_stdin:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the root
        die_with_parent()
        at_end_of_stdin(lambda: os._exit(0))  # the root is gone and nobody is left to tell
    with threadpool_limits(limits=1):  # the node's own threads share the work; BLAS must not add its own
        threads = threads or usable_cores()
        require_open_files(_FILES + threads)
        settings = WorkerSettings(root=address, name=name, threads=threads, crowded=crowded, version=__version__)
        with zmq.Context() as context:  # or a signal that comes while a socket is made leaves it open, and nothing ends
            Worker(context, settings).run()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
