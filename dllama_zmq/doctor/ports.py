"""The TCP ports of a cluster's root: free, its own, or taken by whom. For a root elsewhere: can they be reached?

Source of who listens: proc(5), /proc/net/tcp.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from dllama_zmq.api_config import ApiConfig
from dllama_zmq.bus.addresses import join, why_no_answer
from dllama_zmq.cluster import Cluster
from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.host import ROOT, read
from dllama_zmq.launch.ports import bound_ports, user_of
from dllama_zmq.launch.registry import Record, bind_error
from dllama_zmq.node_config import Ports

_CONNECT_S = 1.0
_LISTENS = "0A"
_MAX_DEPTH = 8


def own_ports(cluster: Cluster | None, find: Callable[[], Record | None], root: Path = ROOT) -> Iterator[Finding]:
    """The ports that a root on this computer needs: those of `cluster`, or the default ones.

    find: returns the running cluster, if there is one.
    """
    running = find()
    wanted = list(_wanted(cluster))
    free = []
    for host, port, purpose in wanted:
        error = bind_error(host, port)
        if error is None:
            free.append(f"{port} ({purpose})")
            continue
        if error != errno.EADDRINUSE:
            yield problem("ports", f"{port} ({purpose}) on {host}: {os.strerror(error)}", "use ports from 1024 on")
            continue
        holder = listener_at(port, root)
        if running is not None and holder is not None and is_of(holder.pid, running.pid, root):
            yield ok("ports", f"{port} ({purpose}) is this cluster's own, of {holder}")
            continue
        text = f"{port} ({purpose}) on {host} is taken by {_who(port, holder)}"
        cure = "stop it, or write other numbers under root.ports" if purpose != "API" else "stop it"
        if cluster is None:
            yield warning("ports", text, "a cluster over a network needs other numbers under root.ports")
        else:
            yield problem("ports", text, cure)
    if free:
        yield ok("ports", f"{', '.join(free)} on {wanted[0][0]}: free")
    if cluster is not None and cluster.tcp_ports is None:
        yield ok("ports", "no TCP ports are needed: all nodes and clients are on this computer")


def ports_elsewhere(host: str, ports: Ports) -> Iterator[Finding]:
    """The ports of a root on another computer."""
    reached = []
    for purpose, port in asdict(ports).items():
        try:
            with socket.create_connection((host, port), _CONNECT_S):
                reached.append(f"{port} ({purpose})")
        except OSError:
            why = why_no_answer(join(host, port), f"its port for {purpose}")
            yield problem("ports", f"{port} ({purpose}) of {host}: {why}", "")
    if reached:
        yield ok("ports", f"{', '.join(reached)} of {host} can be reached")


def _wanted(cluster: Cluster | None) -> Iterator[tuple[str, int, str]]:
    """Host, port and purpose of each port."""
    host, ports = ("0.0.0.0", asdict(Ports())) if cluster is None else (cluster.root.host, bound_ports(cluster))
    for purpose, port in ports.items():
        yield host, port, purpose
    if cluster is not None and isinstance(cluster.api, ApiConfig) and cluster.api.port is not None:
        yield cluster.api.host, cluster.api.port, "API"


def _who(port: int, holder: object) -> str:
    if (other := user_of(port)) is not None:
        what = "the API of the cluster" if other.api.endswith(f":{port}") else "the cluster"
        return f"{what} {other.name!r}; {other.down_command()} takes it down"
    return str(holder) if holder is not None else "another program"


class Listener(Struct, frozen=True):
    """Who listens: a process, or (pid 0) only its user, if the process is another user's."""

    pid: int
    name: str
    user: str

    def __str__(self) -> str:
        return f"{self.name or 'process'} (process {self.pid})" if self.pid else f"a process of user {self.user}"


def listener_at(port: int, root: Path = ROOT) -> Listener | None:
    """Who listens at the port on any address, IPv4 or IPv6; None if nobody does or the system does not say."""
    for name in ("tcp", "tcp6"):
        for line in read(root / "proc/net" / name).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                uid, inode = fields[7], fields[9]
                pid = next(_holders(inode, root), 0)
                return Listener(pid, read(root / f"proc/{pid}/comm").strip() if pid else "", _user(uid))
    return None


def is_of(pid: int, ancestor: int, root: Path = ROOT) -> bool:
    """Whether a process is `ancestor` or one of its descendants."""
    for _ in range(_MAX_DEPTH):
        if pid == ancestor:
            return True
        _, _, after_name = read(root / f"proc/{pid}/stat").rpartition(")")
        parent = after_name.split()[1:2]
        if not parent or parent[0] == "0":
            return False
        pid = int(parent[0])
    return False


def _holders(inode: str, root: Path) -> Iterator[int]:
    """The processes of this user that have the socket of that inode open."""
    for folder in (root / "proc").glob("[0-9]*"):
        with suppress(OSError):
            for name in os.listdir(folder / "fd"):
                with suppress(OSError):  # it may be closed by now
                    if os.readlink(folder / "fd" / name) == f"socket:[{inode}]":
                        yield int(folder.name)


def _user(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid
