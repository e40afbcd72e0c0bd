"""The subject of a plan: the model, the file, the running cluster, their computers; sizes and links."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from dllama_zmq.bench.outlook import Host
from dllama_zmq.bench.speed import Link
from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.bus.text_messages import LinkStatus
from dllama_zmq.cli.chosen import client_of
from dllama_zmq.cli.flags import There
from dllama_zmq.cli.shape_flags import ShapeNumbers, is_shape
from dllama_zmq.cluster import FILE_NAME, Cluster, ClusterFile, is_loopback, load_cluster
from dllama_zmq.errors import UsageError
from dllama_zmq.formats import open_model
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.launch.local_nodes import Threads, shared
from dllama_zmq.launch.registry import connect, find_running
from dllama_zmq.shapes import SHAPES, shape
from dllama_zmq.sharding import MAX_NODES
from dllama_zmq.sources import model_at
from dllama_zmq.spec import WEIGHTS_FLOAT, ModelSpec, Weights

USUAL_LINK = Link(round_trip_s=0.2e-3, bytes_per_s=1e9 / 8)
_HERE = "this computer"
_STATUS_S = 10.0  # the root answers between two steps
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?([kMG])(?:bit|bps)(?:/s)?(?:, ?(\d+(?:\.\d+)?) ?(us|ms))?", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([MGT])B?", re.IGNORECASE)
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "us": 1e-6, "ms": 1e-3}


class Source(Struct, frozen=True):
    """A model's name and numbers, and the cluster's file."""

    name: str
    spec: ModelSpec
    file: ClusterFile | None


def source_of(
    words: Sequence[str], cluster: Path | None, shape_name: str | None, weights: Weights | None, numbers: ShapeNumbers
) -> Source:
    """words: a model and a cluster's file, each optional.

    Raises UsageError, ConfigError or FormatError for what is missing or given twice.
    """
    files = [word for word in words if Path(word).suffix.lower() in (".yaml", ".yml")]
    models = [word for word in words if word not in files]
    files += [] if cluster is None else [str(cluster)]
    named = [*models, *([] if shape_name is None else [f"--shape {shape_name}"])]
    for given in (files, named):
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are given; give one model and at most one cluster's file")
    if shape_name is None and (given_numbers := numbers.given()):
        flag = next(iter(given_numbers))
        raise UsageError(f"--{flag} is for a shape; add --shape NAME, one of {', '.join(SHAPES)}")
    file = load_cluster(files[0]) if files else None
    if file is None and not named:
        if not Path(FILE_NAME).exists():
            raise UsageError(
                f"there is no {FILE_NAME} here, and no model is given: dllama-zmq plan MODEL, or --shape NAME"
            )
        file = load_cluster(FILE_NAME)
    name = shape_name or next(iter(models), None)
    if name is not None and (shape_name is not None or is_shape(name)):
        return Source(name.lower(), _published(name, weights or "q40", numbers), file)
    weight_type = None if weights is None else WEIGHTS_FLOAT[weights]
    if name is not None:
        path = model_at(name)
    elif file is not None:
        path, weight_type = file.model_path(), weight_type or file.cluster.weight_type
    with open_model(path, weight_type) as model:
        return Source(path.name if name is None else name, model.spec, file)


def _published(name: str, weights: Weights, numbers: ShapeNumbers) -> ModelSpec:
    try:
        return shape(name, WEIGHTS_FLOAT[weights], numbers.given())
    except UsageError as error:
        raise UsageError(f"{error}; name a model on this computer by its path") from None


class Running(Struct, frozen=True):
    """A running cluster, and its slowest link if it was measured."""

    status: Status
    link: Link | None


def running_cluster(there: There, file: ClusterFile | None, measure: bool) -> Running | None:
    """The cluster at that address, or of the file if it is up; None without one. measure: its links, 0.5 s each."""
    if there.connect is not None:
        client = client_of(there)
    elif file is not None and (running := find_running(file)) is not None and running.clients:
        client = connect(file)
    else:
        return None
    with client:
        status = client.status(_STATUS_S)
        elsewhere = {node.name for node in status.nodes if node.address and node.address != status.nodes[0].address}
        return Running(status, slowest_link(client.links().links, elsewhere) if measure and elsewhere else None)


def slowest_link(links: Iterable[LinkStatus], elsewhere: Container[str]) -> Link | None:
    """The longest round trip and the lowest rate of the links to the workers `elsewhere`; None without any."""
    trips, rates = [], []
    for link in links:
        if link.name in elsewhere and link.round_trip_s and link.to_bytes_per_s and link.from_bytes_per_s:
            trips.append(link.round_trip_s)
            rates.append(min(link.to_bytes_per_s, link.from_bytes_per_s))
    return Link(max(trips), min(rates)) if trips else None


def counts_of(text: str) -> list[int]:
    """The numbers of nodes of a list such as `1,2,4`. Raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 and int(word) > 0 for word in words):
        raise UsageError(f"--nodes {text!r}: expected numbers of 1 to {MAX_NODES} with commas between, such as 1,2,4")
    return sorted({int(word) for word in words})


def link_of(text: str) -> Link:
    """A link of a rate such as 1Gbit or 100Mbit/s, with a round trip such as `,0.3ms`. Raises UsageError."""
    found = _RATE.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--link {text!r}: expected a rate, and optionally a round trip: 1Gbit or 100Mbit,0.5ms")
    trip_s = USUAL_LINK.round_trip_s if found[3] is None else float(found[3]) * _UNITS[found[4].lower()]
    return Link(trip_s, float(found[1]) * _UNITS[found[2].lower()] / 8)


def size_of(text: str) -> int:
    """Bytes of a size such as 4GB or 512MB, of 10^9 and 10^6. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--memory {text!r}: expected a size such as 4GB or 512MB")
    return round(float(found[1]) * _UNITS[found[2].lower()])


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
