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
from dllama_zmq.bus.known_root import join_by, known_at, peer_for
from dllama_zmq.bus.security import Peer
from dllama_zmq.bus.sockets import Context
from dllama_zmq.cli import flags
from dllama_zmq.cli.flag_kinds import model_flag, size
from dllama_zmq.errors import UsageError
from dllama_zmq.host import require_open_files, usable_cores
from dllama_zmq.launch.parent_watch import at_end_of_stdin, beat
from dllama_zmq.launch.paths import cache_folder
from dllama_zmq.node_config import Ports, Security
from dllama_zmq.own_code import signal_at_parents_end
from dllama_zmq.sources import model_at
from dllama_zmq.trust import Invitation, Role, check_public, own_key
from dllama_zmq.trust.tokens import LIFETIME_S
from dllama_zmq.worker import Worker, WorkerSettings

_FILES = 14  # files opened by libzmq and for the kernels' code, as counted in /proc


def worker(
    *,
    host: Annotated[
        str | None,
        Argument(metavar="HOST", help="The root's computer: a name or address, with :PORT where it is not 5570"),
    ] = None,
    root: Annotated[str | None, Option("--root", metavar="ADDRESS", help="The same, as a flag")] = None,
    join: Annotated[
        str | None,
        Option("--join", metavar="TOKEN", help="Instead of HOST, at first: what `dllama-zmq token` printed there"),
    ] = None,
    root_key: Annotated[
        str | None, Option("--root-key", metavar="KEY", help="The root's public key; by default the one known here")
    ] = None,
    security: flags.SecurityFlag = "curve",
    name: Annotated[
        str, Option("--name", metavar="NAME", help="Which worker of the file to be; any free one if not given")
    ] = "",
    threads: Annotated[int | None, flags.threads_flag("Compute threads; all cores if not given")] = None,
    model: Annotated[
        str | None, model_flag("--model", help="The same model on this computer, to read the weights from")
    ] = None,
    cache: Annotated[
        int | None, size("--cache", help="Disk space for weights of earlier starts, 0: none; half of what is free")
    ] = None,
    leave_with_stdin: Annotated[bool, Option("--leave-with-stdin", hidden=True)] = False,
    beats: Annotated[bool, Option("--beat", hidden=True)] = False,
    oversubscribed: Annotated[bool, Option("--oversubscribed", hidden=True)] = False,
) -> None:
    """Be a worker of the cluster whose root is on HOST. Needs no model file: its weights come over the bus.

    Examples:
        dllama-zmq worker --join TOKEN
        dllama-zmq worker 192.168.1.10
        dllama-zmq worker pi1:5570 -t 3
        dllama-zmq worker 192.168.1.10 --model llama3.gguf
    """
    if [host, root, join].count(None) != 2:
        raise UsageError("give the root once: dllama-zmq worker 192.168.1.10, or at first --join TOKEN")
    if join is not None and (root_key, security) != (None, "curve"):
        raise UsageError("a token has the root's key; leave --root-key and --security out")
    signal.signal(signal.SIGTERM, _leave)
    if leave_with_stdin:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the root
        signal_at_parents_end(signal.SIGKILL)
        at_end_of_stdin(lambda: os._exit(0))  # the root has ended
    if beats:
        beat()
    with threadpool_limits(limits=1):  # the node has its own threads; BLAS must not add more
        threads = threads or usable_cores()
        require_open_files(_FILES + threads)
        with Context() as context:
            peer: Peer | None
            if join is not None:
                address, peer, own_name = join_by(context, _invitation(join), LIFETIME_S, again=True)
            else:
                address, peer, own_name = _known(host or root or "", root_key, security)
            settings = WorkerSettings(
                root=address,
                name=name or own_name,
                threads=threads,
                oversubscribed=oversubscribed,
                version=__version__,
                security=peer,
                model=None if model is None else model_at(model),
                cache=cache_folder("slices"),
                cache_bytes=cache,
            )
            Worker(context, settings).run()


def _invitation(token: str) -> Invitation:
    """The content of a worker's token. Raises UsageError for a client's token, TokenError."""
    invitation = Invitation.read(token)
    if invitation.role is not Role.worker:
        raise UsageError("this token is for a client: dllama-zmq join TOKEN")
    return invitation


def _known(host: str, root_key: str | None, security: Security) -> tuple[str, Peer | None, str]:
    """The address of a root, the keys for it, and this worker's name there. Raises as `peer_for` does."""
    try:
        address = endpoint_of(host, Ports().replies)
    except UsageError as error:
        raise UsageError(f"the root's address {error}") from None
    if root_key is not None:
        return address, Peer(own_key(), check_public(root_key)), ""
    peer = peer_for(address, security, Role.worker)
    known = known_at(address) if peer is not None else None
    return address, peer, known.name if known is not None else ""


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
