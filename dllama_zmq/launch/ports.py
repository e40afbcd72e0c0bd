"""The TCP ports of clusters: which a root binds, who has one, and whether all are free before anything is started."""

from __future__ import annotations

import errno

from msgspec.structs import asdict

from dllama_zmq.cluster import Cluster
from dllama_zmq.errors import BusError
from dllama_zmq.launch.registry import Record, bind_error, running_clusters


def bound_ports(cluster: Cluster) -> dict[str, int]:
    """The ports that the root binds, by purpose."""
    if (ports := cluster.tcp_ports) is None:
        return {}
    return asdict(ports) if cluster.workers else {"clients": ports.clients}


def user_of(port: int, besides: str = "") -> Record | None:
    """The running cluster whose root or API server has this port; none named `besides`."""
    for one in running_clusters():
        if one.name != besides and (port in bound_ports(one.cluster).values() or one.api.endswith(f":{port}")):
            return one
    return None


def check_ports(cluster: Cluster) -> None:
    """Raise BusError if a port of the root is in use, and name the cluster that uses it."""
    for port in bound_ports(cluster).values():
        # any other error is reported when the port is bound
        if bind_error(cluster.root.host, port) != errno.EADDRINUSE:
            continue
        who = "another program; stop it"
        if (other := user_of(port, cluster.name)) is not None:
            who = f"the cluster {other.name!r} of {other.path}; take it down ({other.down_command()})"
        raise BusError(f"{cluster.root.endpoint(port)} is in use by {who}, or choose other numbers under root.ports")
