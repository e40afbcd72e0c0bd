"""The computers of a plan: those of a running cluster, of a file, or one like this for each node."""

from __future__ import annotations

from collections.abc import Sequence

from dllama_zmq.bench.outlook import Host
from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.cluster import Cluster, is_loopback
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.launch.local_nodes import Threads, shared

_HERE = "this computer"


def hosts_of_nothing(all_here: bool, threads: int | None, elsewhere_bytes: int | None, n_nodes: int) -> list[Host]:
    """Each node on a computer of its own like this one, or all on this computer (`all_here`)."""
    names = ["root", *(f"worker{i}" for i in range(1, n_nodes))]
    n_here = n_nodes if all_here else 1
    here = _host(_HERE, names[:n_here], [threads or "auto"] * n_here, free_memory_bytes())
    alone: list[Threads] = [threads or "auto"]
    return [here, *(_host(f"the computer of {name}", [name], alone, elsewhere_bytes) for name in names[n_here:])]


def hosts_of_file(cluster: Cluster, threads: int | None, elsewhere_bytes: int | None, n_nodes: int) -> list[Host]:
    """The computers of the first nodes of `cluster`, with its root here."""
    by_host: dict[str, list[tuple[str, Threads]]] = {_HERE: [("root", cluster.root.threads)]}
    for worker in cluster.workers[: n_nodes - 1]:
        host = _HERE if is_loopback(worker.host) else worker.host
        by_host.setdefault(host, []).append((worker.name, worker.threads))
    return [
        _host(
            host,
            [name for name, _ in nodes],
            [threads or wanted for _, wanted in nodes],
            free_memory_bytes() if host == _HERE else elsewhere_bytes,
        )
        for host, nodes in by_host.items()
    ]


def hosts_of_status(status: Status, threads: int | None, elsewhere_bytes: int | None, n_nodes: int) -> list[Host]:
    """The computers of a running cluster's first nodes, with the free memory that they had when the nodes joined.

    elsewhere_bytes: the free memory of computers other than the root's, instead.
    """
    root = status.nodes[0]
    by_host: dict[str, list[NodeStatus]] = {}
    for node in status.nodes[:n_nodes]:
        is_with_root = node is root or not node.address or node.address == root.address
        by_host.setdefault(root.host if is_with_root else f"{node.host} {node.address}", []).append(node)
    found = []
    for i, (host, nodes) in enumerate(by_host.items()):
        free = [node.free_bytes for node in nodes if node.free_bytes is not None]
        free_bytes = max(free, default=None)  # the node that joined first found most
        if i == 0 and root.free_bytes is not None:  # the present value, beside the loaded model
            free_bytes = root.free_bytes + sum(node.weight_bytes for node in nodes)
        elif i and elsewhere_bytes is not None:
            free_bytes = elsewhere_bytes
        found.append(_host(host, [node.name for node in nodes], [threads or n.threads for n in nodes], free_bytes))
    return found


def _host(name: str, names: Sequence[str], threads: Sequence[Threads], free_bytes: int | None) -> Host:
    """A computer whose nodes have the average of these threads. auto: as many as this computer's cores allow.

    Another computer is assumed to have no more cores than this one, where its speed is measured.
    """
    cores = usable_cores()
    counted, _ = shared(threads, cores)
    each = sum(counted) // len(names)
    if name != _HERE:
        each = min(each, cores // len(names))
    return Host(name, names, max(1, each), free_bytes)
