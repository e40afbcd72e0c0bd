"""cluster.yaml as typed data: which node runs where, and how long each wait may take. Knows no socket and no process.

The file is untrusted: size and depth are bounded, and aliases, duplicate keys and tags are refused. Every error begins
with file, line and column.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from dllama_zmq.api_config import API_HINTS, ApiConfig, ApiLimits
from dllama_zmq.cluster_text import MAX_FILE_BYTES, is_about_a_cluster, other_kind, read_cluster_text
from dllama_zmq.errors import ConfigError, UsageError
from dllama_zmq.node_config import (
    NAME_HINT,
    NODE_HINTS,
    SIZE,
    ClientConfig,
    Limits,
    Name,
    Ports,
    RootConfig,
    Security,
    WorkerConfig,
    size_bytes,
)
from dllama_zmq.sources import DEMO, TEXT, kind_of, path_of, tokenizer_beside
from dllama_zmq.spec import WEIGHTS_FLOAT, FloatType, Sync, Weights
from dllama_zmq.threads import converted_by_threads

if TYPE_CHECKING:  # else imported where a file is read: nodes read none
    from dllama_zmq.yaml_tree import YamlTree

FILE_NAME = "cluster.yaml"

OPEN_BUS = "security: none: everybody in the network can use and read this cluster, for nothing is encrypted"

_FilePath = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,4096}\Z")]


@converted_by_threads
class Cluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cluster: a root, 2^n - 1 workers, their model and their settings."""

    name: Name = ""
    """`parse_cluster` fills in a missing name (`default_name`)."""
    model: _FilePath
    tokenizer: _FilePath | None = None
    weights: Weights | None = None
    sync: Sync = "f32"
    kernels: Literal["auto", "simd", "numpy"] = "auto"
    kv_cache: Literal["f16", "f32"] = "f16"
    max_seq_len: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None
    max_sequences: Annotated[int, Meta(ge=1, le=256)] = 16
    """Answers that are generated at the same time; more requests wait."""
    kv_memory: Annotated[str, Meta(pattern=rf"\A(auto|{SIZE})\Z")] = "auto"
    """Most memory of each node for the KV cache; auto: as much as max_sequences need, where there is as much."""
    weight_cache: Annotated[str, Meta(pattern=rf"\A(auto|none|{SIZE})\Z")] = "auto"
    """Most disk space of each computer for weights of earlier starts; auto: half of what would be free."""
    check_memory: bool = True
    root: RootConfig = RootConfig()
    workers: list[WorkerConfig] = []
    clients: list[ClientConfig] = []
    limits: Limits = Limits()
    api: ApiConfig | bool = True
    """The API server; False: none."""
    security: Security = "curve"

    @property
    def n_nodes(self) -> int:
        """The root and its workers."""
        return 1 + len(self.workers)

    @property
    def weight_type(self) -> FloatType | None:
        """The type in which weights are read; None means as they are stored."""
        return None if self.weights is None else WEIGHTS_FLOAT[self.weights]

    @property
    def kv_bytes(self) -> int | None:
        """kv_memory in bytes; None means auto."""
        return size_bytes(self.kv_memory)

    @property
    def cache_bytes(self) -> int | None:
        """weight_cache in bytes; None means auto."""
        return size_bytes(self.weight_cache)

    @property
    def tcp_ports(self) -> Ports | None:
        """The root's TCP ports; None if all nodes are on this computer and use ipc."""
        return self.root.ports or (None if is_loopback(self.root.host) else Ports())

    @property
    def secured(self) -> bool:
        """Whether the root's ports have CURVE: a network can reach them, and the file asks for no open bus."""
        return self.reached_by == "curve"

    @property
    def warning(self) -> str:
        """What people must hear at every start of an open bus; empty if there is none."""
        return OPEN_BUS if self.reached_by == "none" else ""

    @property
    def reached_by(self) -> Literal["curve", "none", "local"]:
        """The security of what a network can reach; local: it reaches nothing of this cluster."""
        return "local" if is_loopback(self.root.host) else self.security


class ClusterFile(Struct, frozen=True):
    """A cluster and its file; paths in the file are relative to the file's folder.

    The file identifies the cluster but may be missing: a folder without one can have a cluster, too
    (`launch.registry.without_file`).

    private: the cluster serves one call, and no other command finds it.
    """

    path: Path
    cluster: Cluster
    private: bool = False

    @property
    def identity(self) -> Path:
        """`path` with all links resolved."""
        return self.path.resolve()

    def command(self, words: str) -> str:
        """The command line for this cluster; `words` are the command and its arguments."""
        which = "" if self.path == Path(FILE_NAME) else f" --cluster {shlex.quote(str(self.path))}"
        return f"dllama-zmq {words}{which}"

    def runs_the_same(self, other: ClusterFile) -> bool:
        """Whether both have the same model, weight type and tokenizer, so that they give the same answers."""
        return self._sources() == other._sources()

    def _sources(self) -> tuple[Path, Weights | None, Path]:
        return self.unchecked_model_path().resolve(), self.cluster.weights, self._unchecked_tokenizer_path().resolve()

    def unchecked_model_path(self) -> Path:
        """The path of the model, whether or not it exists. Raises ConfigError for a hub's model that is not pulled."""
        return self._resolve(self.cluster.model, "model", ".m")

    def model_path(self) -> Path:
        """The model's file or folder. Raises ConfigError if there is none."""
        advice = f"give a model's file or folder, or {DEMO} for the shipped one"
        if self._prefix():
            advice = f"write the path of a model's file or folder after `model:`, or {DEMO} for the shipped one"
        return self._existing(self.unchecked_model_path(), "model", advice)

    def tokenizer_path(self) -> Path:
        """The given tokenizer, else the model's own (`tokenizer_beside`). Raises ConfigError if there is none."""
        advice = "give the path of the model's tokenizer with --tokenizer, or after `tokenizer:`"
        return self._existing(self._unchecked_tokenizer_path(), "tokenizer", advice)

    def _unchecked_tokenizer_path(self) -> Path:
        if self.cluster.tokenizer is None:
            return tokenizer_beside(self.unchecked_model_path())
        return self._resolve(self.cluster.tokenizer, "tokenizer", ".t")

    def _resolve(self, text: str, key: str, suffix: str) -> Path:
        try:
            return path_of(text, self.identity.parent, suffix)
        except UsageError as error:
            raise ConfigError(f"{self._prefix()}{key}: {error}") from error

    def _existing(self, path: Path, key: str, advice: str) -> Path:
        if os.path.isfile(path) or os.path.isdir(path):
            return path
        prefix = self._prefix()
        if os.path.lexists(path):
            raise ConfigError(f"{prefix}{key}: {path} is {kind_of(path)}; {advice}")
        relative = f" (paths in the file are relative to {self.identity.parent})" if prefix else ""
        raise ConfigError(f"{prefix}{key}: there is no {path}; {advice}{relative}")

    def _prefix(self) -> str:
        """The file, to begin a message with; empty if the value came from the command line."""
        return "" if self.private or not self.path.exists() else f"{self.path}: "


def load_cluster(path: str | os.PathLike[str]) -> ClusterFile:
    """Read and check a cluster file. Raises ConfigError, one sentence that begins with file, line and column."""
    from dllama_zmq.yaml_tree import NoMapping

    path = Path(path)
    text = read_cluster_text(path)
    try:
        return ClusterFile(path, parse_cluster(text, path))
    except NoMapping as error:
        if is_about_a_cluster(text) or not text.strip():
            raise
        raise other_kind(path, TEXT) from error


def parse_cluster(text: str, path: str | os.PathLike[str] = "cluster.yaml") -> Cluster:
    """The cluster that `text` describes; `path` is for messages and the name. Raises ConfigError."""
    from dllama_zmq.yaml_tree import YamlTree

    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: the text is longer than {MAX_FILE_BYTES} characters; this is not a cluster file")
    tree = YamlTree(text, os.fspath(path), _STRUCTS, _GONE)
    try:
        cluster = msgspec.convert(_with_listed_workers(tree), Cluster)
    except msgspec.ValidationError as error:
        raise tree.explain(str(error), _HINTS) from error
    _check_nodes(cluster, tree)
    _check_hosts(cluster, tree)
    return cluster if cluster.name else msgspec.structs.replace(cluster, name=default_name(Path(path)))


def default_name(path: Path) -> str:
    """The name of a cluster whose file has none: the file's name without its suffix, for cluster.yaml the folder's.

    It is reduced to the allowed characters.
    """
    path = path.resolve()
    chosen = path.parent.name if path.stem == Path(FILE_NAME).stem else path.stem
    name = os.fsencode(chosen).decode("utf-8", "ignore")  # UTF-8 in any locale
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", ascii_name).lstrip("_-")[:32].rstrip("-") or "home"


def is_here(worker: WorkerConfig) -> bool:
    """Whether the worker is a process of the root's own computer, which needs no TCP."""
    return not worker.ssh and is_loopback(worker.host)


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach `host`: 127.0.0.0/8, ::1, localhost. Other names count as a network."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _with_listed_workers(tree: YamlTree) -> object:
    """The file's data; a number of workers becomes a list of workers on this computer."""
    data = tree.data
    n_workers = data.get("workers") if isinstance(data, dict) else None
    if not isinstance(data, dict) or type(n_workers) is not int:
        return data
    if not 0 <= n_workers <= _MAX_WORKERS:
        raise tree.error("workers", f"expected {_WORKERS}, got {n_workers}")
    return data | {"workers": [{"name": f"worker{i}"} for i in range(1, n_workers + 1)]}


_STRUCTS: dict[str, type[Struct]] = {
    "": Cluster,
    "root": RootConfig,
    "root.ports": Ports,
    "workers[]": WorkerConfig,
    "clients[]": ClientConfig,
    "limits": Limits,
    "api": ApiConfig,
    "api.limits": ApiLimits,
}

_GONE = {
    "open_bus": "is gone: take this line out, for the bus is encrypted now, or write `security: none` for an open one",
}
"""Keys of earlier versions."""

_MAX_WORKERS = 1023


_WORKERS = (
    f"a number of workers on this computer, 0 to {_MAX_WORKERS}, or a list with a line for each, such as "
    "`- {name: pi2, host: 192.168.1.11}`"
)
_HINTS = {
    "name": NAME_HINT,
    "model": "the path of a .m file or of a model's folder, or demo",
    "tokenizer": "the path of a .t file, or demo",
    "weights": "q40, q80, f16 or f32",
    "sync": "f32, f16 or q80",
    "kernels": "auto, simd or numpy",
    "kv_cache": "f16 or f32",
    "security": "curve or none",
    "max_seq_len": "a number of tokens, 1 to 16777216",
    "max_sequences": "a number of answers at the same time, 1 to 256",
    "kv_memory": "auto, or a size such as 512MB or 2GB",
    "weight_cache": "auto, none, or a size such as 512MB or 20GB",
    "workers": _WORKERS,
    **{f"limits.{key}": "seconds, more than 0 and at most 86400" for key in Limits.__struct_fields__},
    **NODE_HINTS,
    **API_HINTS,
}
"""The expected value at each key path, for error messages."""


def _check_nodes(cluster: Cluster, tree: YamlTree) -> None:
    n_workers, n_nodes = len(cluster.workers), cluster.n_nodes
    if n_nodes & (n_nodes - 1):
        raise tree.error(
            "workers", f"1 root + {n_workers} workers are {n_nodes} nodes; use 0, 1, 3, 7, ... workers (2^n nodes)"
        )
    for i, worker in enumerate(cluster.workers):
        if worker.name in ("root", "gateway"):  # the names of two logs
            raise tree.error(f"workers[{i}].name", f"a worker cannot be named {worker.name}; choose another name")
    workers, clients = [worker.name for worker in cluster.workers], [client.name for client in cluster.clients]
    for kind, names in (("workers", workers), ("clients", clients)):
        for name, n_uses in Counter(names).items():
            if n_uses > 1:
                last = max(i for i, one in enumerate(names) if one == name)
                raise tree.error(f"{kind}[{last}].name", f"{n_uses} {kind} are named {name}; give each its own name")
    ports = cluster.root.ports or Ports()
    if len({ports.replies, ports.steps, ports.clients}) < 3:
        raise tree.error(
            "root.ports",
            f"replies {ports.replies}, steps {ports.steps} and clients {ports.clients} must be three different ports",
        )


def _check_hosts(cluster: Cluster, tree: YamlTree) -> None:
    from dllama_zmq.yaml_tree import shown

    root, api = cluster.root.host, cluster.api
    if isinstance(api, ApiConfig) and not api.keys and not is_loopback(api.host):
        cure = "write `keys:` with a key that its clients must have, or use 127.0.0.1"
        raise tree.error("api.host", f"{shown(api.host)} can be reached from a network, and has no key; {cure}")
    if not is_loopback(root):
        return
    for i, worker in enumerate(cluster.workers):
        if worker.ssh and cluster.tcp_ports is None and is_loopback(worker.host):
            cure = "write `ports:` with three free ports under `root:`"
            raise tree.error(f"workers[{i}].ssh", f"{worker.name} reaches the root by TCP only; {cure}")
        if not is_loopback(worker.host):
            raise tree.error(
                f"workers[{i}].{'host' if f'workers[{i}].host' in tree.nodes else 'ssh'}",
                f"{worker.name} on {shown(worker.host)} could never reach a root on {root}; "
                "set root.host to an address of the root that its workers can reach",
            )
