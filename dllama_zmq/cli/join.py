"""`dllama-zmq join`: admits this computer's key to a cluster of another computer."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from dllama_zmq.bus.addresses import short
from dllama_zmq.bus.known_root import join_by
from dllama_zmq.bus.sockets import Context
from dllama_zmq.cli.notes import note
from dllama_zmq.node_config import Ports
from dllama_zmq.trust import Invitation, Role


def join(*, token: Annotated[str, Argument(metavar="TOKEN", help="What `dllama-zmq token` printed there")]) -> None:
    """Join a cluster of another computer by a token, and remember its root. Once is enough.

    Afterwards this computer's commands use that cluster with --connect HOST; or, by a worker's token, its workers are
    started without one.

    Examples:
        dllama-zmq join TOKEN
    """
    invitation = Invitation.read(token)
    with Context() as context:
        address, _, name = join_by(context, invitation, wait_s=0.0)
    if invitation.role is Role.worker:
        command = f"worker {short(address, Ports().replies)}"
    else:
        command = f"chat --connect {short(address, Ports().clients)}"
    note(f"joined{f' as {name}' if name else ''}; now: dllama-zmq {command}")
