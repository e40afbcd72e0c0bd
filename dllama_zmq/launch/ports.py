"""Check that a cluster's TCP ports are free, before anything is read, compiled or started."""

from __future__ import annotations

import errno

from dllama_zmq.cluster import Cluster
from dllama_zmq.errors import BusError
from dllama_zmq.launch.registry import bind_error, running_clusters


def check_ports(cluster: Cluster) -> None:
    """Raise BusError if a port of the root is in use, and name the cluster that uses it."""
    for port in _ports(cluster):
        # any other error is reported when the port is bound
        if bind_error(cluster.root.host, port) != errno.EADDRINUSE:
            continue
        for other in running_clusters():
            if other.name != cluster.name and port in _ports(other.cluster):
                holder, cure = f"the cluster {other.name!r} of {other.path}", f"take it down ({other.down_command()})"
                break
        else:
            holder, cure = "another program", "stop it"
        raise BusError(
            f"{cluster.root.endpoint(port)} is in use by {holder}; {cure}, or choose other numbers under root.ports"
        )


def _ports(cluster: Cluster) -> tuple[int, ...]:
    """The ports that the root binds."""
    ports = cluster.tcp_ports
    if ports is None:
        return ()
    return (ports.replies, ports.steps, ports.clients) if cluster.workers else (ports.clients,)
