"""What a deployment needs, and its cluster file: the given one with the addresses, model and keys of the deployment."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml
from msgspec import NODEFAULT, Struct

from dllama_zmq.api_config import API_PORTS, ApiConfig
from dllama_zmq.cluster import Cluster, ClusterFile
from dllama_zmq.formats import open_model
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.node_config import RootConfig, Threads, WorkerConfig
from dllama_zmq.render.files import HOME, kept_key
from dllama_zmq.root.fitting import check_kv_memory
from dllama_zmq.sharding import KVBudget, Plan, context_length, node_memory
from dllama_zmq.sources import DEMO
from dllama_zmq.trust import KeyPair

Auto = Literal["auto"]

ETC = "/etc/dllama-zmq"
"""The folder of the cluster file on the root's computer or container."""
FILE = f"{ETC}/cluster.yaml"
MODELS = "/models"
"""The folder of the model in containers."""
API_KEYS = "/run/secrets/api.keys"
API_PORT = API_PORTS[0]
_API_KEY_BYTES = 24
_MIB = 1 << 20
_KEPT_FREE = 0.1  # a node leaves this share of its memory free, so it must get more than it uses
_COMPILING_BYTES = 512 * _MIB
"""The first start compiles kernels in three processes of 120 MiB each; the root's front and API server take 50."""


def cluster_yaml(cluster: Cluster, source: Path) -> str:
    """The text of a cluster file with the values that differ from the defaults."""
    text = yaml.safe_dump(_changed(cluster), sort_keys=False, allow_unicode=True, width=120)
    return f"# made from {source.name} by dllama-zmq render\n{text}"


def _changed(value: Struct) -> dict[str, Any]:
    """The fields that differ from their defaults, as data for YAML."""
    changed: dict[str, Any] = {}
    for field in msgspec.structs.fields(value):
        own, default = getattr(value, field.name), field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        if own == default:
            continue
        if isinstance(own, list):
            changed[field.name] = [_changed(one) if isinstance(one, Struct) else one for one in own]
        else:
            changed[field.name] = _changed(own) if isinstance(own, Struct) else own
    return changed


class ModelFiles(Struct, frozen=True):
    """A model in the root's folder MODELS.

    model, tokenizer: their values in the cluster file. files: where each file is here, by its name in MODELS.
    """

    model: str
    tokenizer: str | None
    files: dict[str, Path]

    @classmethod
    def of(cls, file: ClusterFile, parts: Sequence[Path]) -> ModelFiles:
        """parts: the files of the model's weights. Raises ConfigError if a file is missing."""
        model, tokenizer, files = file.cluster.model, file.cluster.tokenizer, dict[str, Path]()
        if model != DEMO:
            path = file.model_path()
            if path.suffix == ".safetensors":
                path = path.parent
            files |= _in_folder(path) if path.is_dir() else {part.name: part for part in parts}
            model = f"{MODELS}/{path.name}"
        if tokenizer != DEMO and (tokenizer is not None or model != DEMO):
            words = file.tokenizer_path()
            is_beside = words.name in files or any(name.startswith(f"{words.name}/") for name in files)
            files |= {} if is_beside else _in_folder(words) if words.is_dir() else {words.name: words}
            tokenizer = None if tokenizer is None else f"{MODELS}/{words.name}"
        return cls(model, tokenizer, {name: path.resolve() for name, path in files.items()})


def _in_folder(folder: Path) -> dict[str, Path]:
    return {f"{folder.name}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}


class Needs(Struct, frozen=True):
    """root_mib, worker_mib: memory of a node with a full KV cache. worker_weight_bytes: of the largest worker."""

    root_mib: int
    worker_mib: int
    worker_weight_bytes: int
    model: ModelFiles


def needs_of(file: ClusterFile) -> Needs:
    """Raises ConfigError, FormatError, PlanError if the model cannot be read or split like this."""
    cluster = file.cluster
    with open_model(file.model_path(), cluster.weight_type) as model:
        plan = Plan.make(model.spec, cluster.n_nodes, str(model.path))
        seq_len = context_length(model.spec, cluster.max_seq_len)
        budget = KVBudget(plan, cluster.kv_cache, seq_len, cluster.max_sequences, cluster.kv_bytes)
        check_kv_memory(budget)
        files = ModelFiles.of(file, model.paths)
    positions = budget.wanted * KV_PAGE
    nodes = [node_memory(plan, node, positions, cluster.kv_cache) for node in range(cluster.n_nodes)]
    mib = [int((node.total / (1 - _KEPT_FREE) + _COMPILING_BYTES) / _MIB) + 1 for node in nodes]
    return Needs(mib[0], max(mib[1:], default=0), max((node.weights for node in nodes[1:]), default=0), files)


def in_containers(
    file: ClusterFile, model: ModelFiles, workers: Sequence[WorkerConfig], threads: Threads | Auto
) -> Cluster:
    """The cluster with its root in a container of its own, which `workers` reach, and with a port for the API.

    The API has keys there, because a published port is open to a network.
    """
    api = file.cluster.api if isinstance(file.cluster.api, ApiConfig) else ApiConfig()
    return msgspec.structs.replace(
        file.cluster,
        model=model.model,
        tokenizer=model.tokenizer,
        root=RootConfig(host="0.0.0.0", threads=threads),
        workers=list(workers),
        api=msgspec.structs.replace(api, host="0.0.0.0", port=API_PORT, keys=API_KEYS),
    )


def kept_keys(folder: Path, nodes: Iterable[str]) -> dict[str, KeyPair]:
    """The key pair of each node: from an earlier rendering, else new."""
    return {node: kept_key(folder / _key_file(node)) for node in nodes}


def secrets_of(file: ClusterFile, keys: Mapping[str, KeyPair]) -> dict[str, str]:
    """The secret files by path: the nodes' keys, and the API's keys, given or new. Raises ConfigError."""
    api = file.cluster.api
    known = api.read_keys(file.identity.parent, f"{file.path}: api.keys") if isinstance(api, ApiConfig) else []
    return {_key_file(node): f"{pair.secret}\n" for node, pair in keys.items()} | {
        "keys/api.keys": "".join(f"{key}\n" for key in known or [secrets.token_urlsafe(_API_KEY_BYTES)])
    }


def _key_file(node: str) -> str:
    return f"keys/{node}/key"


ROOT_WORDS = ["up", FILE, "--foreground"]


def worker_words(
    cluster: Cluster, root: str, name: str, threads: Threads | Auto = "auto", root_key: str = ""
) -> list[str]:
    """The command of a worker. Without root_key it uses the root that it knows from a token."""
    words = ["worker", root, "--name", name, *([] if threads == "auto" else ["--threads", str(threads)])]
    if cluster.security == "none":
        return [*words, "--security", "none"]
    return [*words, *([f"--root-key={root_key}"] if root_key else [])]  # one word, because a key may begin with -


HEALTH_CHECK = [
    "python",
    "-c",
    f"import urllib.request as it; it.urlopen('http://127.0.0.1:{API_PORT}/health', timeout=4)",
]
"""A health check in Python, because the image has no curl. Fails while a node is missing."""
PLACES = {
    "home": HOME,
    "etc": ETC,
    "models_folder": MODELS,
    "api_keys": API_KEYS,
    "api_port": API_PORT,
    "health_check": HEALTH_CHECK,
}
"""What the templates of containers name."""
