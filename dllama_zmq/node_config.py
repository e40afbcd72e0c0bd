"""The nodes and clients of cluster.yaml: their places, keys and deadlines."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from dllama_zmq.api_config import Host, Port

NAME_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z"
"""Names become folders, socket identities and columns of tables."""

SIZE = r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([MGT]B)"
"""An amount of bytes, as people write it."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Security = Literal["curve", "none"]
"""curve: what a network can reach is encrypted, and only known keys may connect. none: an open bus."""
PublicKey = Annotated[str, Meta(pattern=r"\A[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}\Z")]
"""A public key of CURVE in Z85 (RFC 32 of ZeroMQ)."""


Ssh = Annotated[
    str,
    Meta(pattern=r"\A(ssh://)?([A-Za-z0-9_][A-Za-z0-9._+~-]*@)?[A-Za-z0-9_\[][A-Za-z0-9._:%\[\]-]*\Z", max_length=255),
]
"""A destination of ssh(1) that can be neither an option nor a word of a shell."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Deadlines in seconds; a wait beyond one ends in an error that names the node."""

    join_s: Seconds = 60.0
    """For a worker to join a cluster that has not been ready yet."""
    rejoin_s: Seconds = 120.0
    """For a worker that was lost to come back: until then its requests wait, and continue where they were."""
    load_s: Seconds = 600.0
    """For a worker to receive its slices of the model."""
    ready_s: Seconds = 10.0
    """For a worker with its slices to hear the root's beacons."""
    step_s: Seconds = 60.0
    """For a node to reply to one stage."""
    stop_s: Seconds = 3.0
    """For a node to leave after it was asked to."""


class Ports(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The root's three TCP ports. A worker is started with `replies` and learns the others from the root."""

    replies: Port = 5570
    steps: Port = 5571
    clients: Port = 5572


class RootConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the root listens, and its compute threads."""

    host: Host = "127.0.0.1"
    ports: Ports | None = None
    threads: Threads | Literal["auto"] = "auto"

    def endpoint(self, port: int) -> str:
        """`port` on the root's host, as ZeroMQ writes addresses."""
        return f"tcp://[{self.host}]:{port}" if ":" in self.host else f"tcp://{self.host}:{port}"


class WorkerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One worker: its name, host, public key (None: learned from a token or over ssh), and compute threads.

    ssh: the destination if the root starts it over ssh. Without `host`, its host is that of `ssh`, or this computer.
    """

    name: Name
    host: Host = ""
    ssh: Ssh | None = None
    key: PublicKey | None = None
    threads: Threads | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not self.host:
            msgspec.structs.force_setattr(self, "host", _host_of(self.ssh or "") or "127.0.0.1")

    @property
    def destination(self) -> str:
        """Its destination for ssh."""
        return self.ssh or self.host


class ClientConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One client on another computer: its name and its public key."""

    name: Name
    key: PublicKey


def _host_of(ssh: str) -> str:
    """The host in a destination of ssh; empty if there is none."""
    scheme, _, rest = ssh.rpartition("://")
    host = rest.rpartition("@")[2]
    if scheme and not host.endswith("]"):
        host = host.partition("]:")[0] if host.startswith("[") else host.partition(":")[0]
    return host.strip("[]")


NAME_HINT = "a name of letters, digits, - and _, at most 32, the first a letter or a digit"
_HOST = "a host name or an address, without scheme or port"
_KEY = "a public key: the 40 characters that `dllama-zmq keygen` prints there, in quotes"
_SSH = "where ssh leads, such as pi@192.168.1.12, a name of ~/.ssh/config, or ssh://pi@192.168.1.12:2222"
_CLIENT = '`- {name: laptop, key: "…"}`'
_THREADS = "a number of threads, 1 to 1024, or auto: this host's cores shared among its nodes"
NODE_HINTS = {
    "root.host": _HOST,
    "root.threads": _THREADS,
    **{f"root.ports.{key}": "a port number, 1 to 65535" for key in Ports.__struct_fields__},
    "workers[]": "a worker, such as `- {name: pi2, host: 192.168.1.11}`",
    "workers[].name": NAME_HINT,
    "workers[].host": _HOST,
    "workers[].ssh": _SSH,
    "workers[].key": _KEY,
    "workers[].threads": _THREADS,
    "clients": f"a list with a line for each, such as {_CLIENT}",
    "clients[]": f"a client, such as {_CLIENT}",
    "clients[].name": NAME_HINT,
    "clients[].key": _KEY,
}
"""The expected value at each key path, for error messages."""


def size_bytes(size: str) -> int | None:
    """A SIZE in bytes; None for auto, 0 for none and 0."""
    if (found := re.fullmatch(SIZE, size)) is None:
        return None if size == "auto" else 0
    return int(float(found[1]) * {"MB": 10**6, "GB": 10**9, "TB": 10**12}[found[2]])
