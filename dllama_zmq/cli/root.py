"""The root's process, in the foreground or started by another command."""

from __future__ import annotations

from typing import Annotated

from threadpoolctl import threadpool_limits
from typer import Argument, Option

from dllama_zmq.cli.progress import Display
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.launch.daemon import run_cluster, run_started


def be_root(file: ClusterFile) -> None:
    """Run the cluster's root in the foreground."""
    with threadpool_limits(limits=1), Display() as display:
        run_cluster(file, display)


def root(
    name: Annotated[str, Argument(metavar="NAME", help="The cluster's name")],
    lock: Annotated[int, Option("--lock", metavar="N", help="The descriptor of the cluster's lock")],
    api: Annotated[int | None, Option("--api", metavar="N", help="That of the API server's port")] = None,
) -> None:
    """Be the root of the cluster that another command is starting under NAME."""
    with threadpool_limits(limits=1), Display() as display:
        run_started(name, lock, api, display)
