"""The root's process, in the foreground or started by another command; apart from commands that only talk to one."""

from __future__ import annotations

from pathlib import Path

from threadpoolctl import threadpool_limits

from dllama_zmq.cli.chosen import to_bring_up
from dllama_zmq.cli.flags import Overrides
from dllama_zmq.cli.overrides import fetched
from dllama_zmq.cli.progress import Display
from dllama_zmq.launch.daemon import run_cluster, run_started


def be_cluster(path: Path, overrides: Overrides) -> None:
    """Be the cluster's root, in the foreground."""
    file = to_bring_up(path, fetched(overrides))
    with threadpool_limits(limits=1), Display() as display:
        run_cluster(file, display)


def be_started_cluster(name: str, lock: int) -> None:
    """Be the root of a cluster that another process is starting."""
    with threadpool_limits(limits=1), Display() as display:
        run_started(name, lock, display)
