"""The checks, in this order: this computer, the cluster's file, the running cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from dllama_zmq.bus.addresses import host_of, join
from dllama_zmq.client import Client
from dllama_zmq.cluster import ClusterFile, is_loopback
from dllama_zmq.doctor import computer, keys, names, nodes, ports, programs
from dllama_zmq.doctor.findings import Check, Finding, ok, problem
from dllama_zmq.errors import ConfigError
from dllama_zmq.hub.cache import cache_folder as hub_folder
from dllama_zmq.kernels import simd_obstacle
from dllama_zmq.launch.paths import cache_folder, folders
from dllama_zmq.launch.registry import address_elsewhere, find_running
from dllama_zmq.node_config import Ports, Security

_QUICK_S, _NETWORK_S = 5.0, 20.0
_CLUSTER_S = nodes.STATUS_S + nodes.LINKS_S + _QUICK_S


class Subject(Struct, frozen=True):
    """The cluster to check: its file, or the address of a root elsewhere, or neither.

    security: of that root. broken: the error of the file.
    """

    file: ClusterFile | None = None
    root: str = ""
    security: Security = "curve"
    broken: str = ""


def checks_of(subject: Subject) -> Sequence[Check]:
    """Every check that is possible here."""
    checks = [
        Check("version", "looking at versions", _QUICK_S, programs.versions),
        Check("packages", "looking at packages", _QUICK_S, programs.packages),
        Check("keys", "looking at keys", _QUICK_S, keys.own_keys),
        Check("kernels", "looking at this CPU", _QUICK_S, programs.kernels),
        Check("cores", "counting cores", _QUICK_S, computer.cores),
        Check("clock rate", "looking at clock rates", _QUICK_S, computer.clock_rates),
        Check("heat", "looking at temperatures", _QUICK_S, computer.heat),
        Check("power", "asking the firmware", _QUICK_S, computer.power),
        Check("memory", "looking at memory", _QUICK_S, computer.memory),
        Check("huge pages", "looking at huge pages", _QUICK_S, computer.huge_pages),
        Check("limits", "looking at limits", _QUICK_S, computer.limits),
        *(
            Check("disk", f"looking at {folder}", _QUICK_S, partial(computer.disk, purpose, folder))
            for purpose, folder in _folders()
        ),
    ]
    file = subject.file
    if subject.broken:
        return [*checks, Check("file", "reading the file", _QUICK_S, lambda: [problem("file", subject.broken, "")])]
    if subject.root:
        host = host_of(subject.root)
        if subject.root == join(host, Ports().clients):  # other ports of that root are not known
            look = partial(ports.ports_elsewhere, host, Ports())
            checks.append(Check("ports", f"looking at the ports of {host}", _NETWORK_S, look))
        return [*checks, Check("cluster", "asking the cluster", _CLUSTER_S, partial(_at, subject, host))]
    if file is None:
        return [*checks, Check("ports", "looking at ports", _QUICK_S, partial(ports.own_ports, None, lambda: None))]
    return [
        *checks,
        Check("model", "looking for the model", _QUICK_S, partial(_model, file)),
        Check("hosts", "looking for the cluster's hosts", _NETWORK_S, partial(names.hosts, file.cluster)),
        Check("security", "looking at the cluster's keys", _QUICK_S, partial(keys.ring, file)),
        Check("ports", "looking at the root's ports", _NETWORK_S, partial(_ports, file)),
        Check("cluster", "asking the cluster", _CLUSTER_S, partial(_cluster, file)),
    ]


def _ports(file: ClusterFile) -> Iterator[Finding]:
    cluster = file.cluster
    if address_elsewhere(cluster) is None:
        yield from ports.own_ports(cluster, partial(find_running, file))
    else:
        yield from ports.ports_elsewhere(cluster.root.host, cluster.tcp_ports or Ports())


def _cluster(file: ClusterFile) -> Iterator[Finding]:
    if (address := address_elsewhere(file.cluster)) is not None:
        yield from nodes.running_cluster(Client(address, file.cluster.security), is_elsewhere=True)
        return
    running = find_running(file)
    if running is None or not running.clients:
        text = f"{file.cluster.name} is not running, so no node was asked; `{file.command('up')}` starts it"
        yield ok("cluster", text)
    else:
        yield from nodes.running_cluster(Client(running.clients), is_elsewhere=False)


def _at(subject: Subject, host: str) -> Iterator[Finding]:
    is_elsewhere = subject.root.startswith("tcp://") and not is_loopback(host)
    yield from nodes.running_cluster(Client(subject.root, subject.security), is_elsewhere)


def _folders() -> Iterator[tuple[str, Path]]:
    if not simd_obstacle():
        from dllama_zmq.kernels.simd.store import cache_folder as kernels_folder

        yield "compiled kernels", kernels_folder()
    run, logs = folders()
    yield "pulled models", hub_folder()
    yield "weights of earlier starts", cache_folder("slices")
    yield "logs", logs
    yield "sockets", run


def _model(file: ClusterFile) -> Iterator[Finding]:
    try:
        model, tokenizer = file.model_path(), file.tokenizer_path()
    except ConfigError as error:
        what, _, cure = str(error).partition("; ")
        yield problem("model", what, cure)
    else:
        yield ok("model", f"{model}, with the tokenizer {tokenizer}")
