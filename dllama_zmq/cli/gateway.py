"""The process of a cluster's API server, started by its root."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from dllama_zmq.gateway.process import run_started


def gateway(
    listener: Annotated[int, Option("--listener", metavar="N", help="The descriptor of its port, which listens")],
) -> None:
    """Be the API server of the cluster whose root has started this process."""
    run_started(listener)
