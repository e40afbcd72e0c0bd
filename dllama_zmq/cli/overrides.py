"""Flags that override a cluster's file."""

from __future__ import annotations

import shlex
from pathlib import Path

from msgspec.structs import replace

from dllama_zmq.cli.flags import Overrides
from dllama_zmq.cli.notes import note
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import ClusterError, UsageError
from dllama_zmq.hub import HUB_PREFIX, ModelName
from dllama_zmq.launch import registry
from dllama_zmq.launch.registry import Record
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import plural
from dllama_zmq.sources import DEMO, absolute_model, expand_home


def applied(overrides: Overrides, file: ClusterFile) -> ClusterFile:
    """`file` with the overrides applied. Raises UsageError."""
    if overrides.workers is not None:
        if not file.path.exists():
            raise UsageError(f"--workers: {_fixed(file)}; {_anew(file, f'--workers {overrides.workers}')}")
        raise UsageError(f"--workers needs no cluster file; {file.path} has its own list of workers")
    changes: dict[str, object] = {
        "sync": overrides.sync,
        "kernels": overrides.kernels,
        "weights": overrides.weights,
        "max_seq_len": overrides.context,
        "check_memory": False if overrides.force else None,
    }
    cluster = replace(file.cluster, **{key: it for key, it in changes.items() if it is not None})
    if overrides.nodes is not None:
        cluster = replace(cluster, workers=_first(overrides.nodes, file))
    if overrides.threads is not None:
        root, *workers = [replace(node, threads=overrides.threads) for node in (cluster.root, *cluster.workers)]
        cluster = replace(cluster, root=root, workers=workers)
    if overrides.model is not None:  # the file's tokenizer belongs to the file's model
        cluster = replace(cluster, model=absolute_model(overrides.model), tokenizer=None)
    if overrides.tokenizer is not None:
        given = str(overrides.tokenizer)
        tokenizer = DEMO if given == DEMO else str(expand_home(given).absolute())
        cluster = replace(cluster, tokenizer=tokenizer)
    return replace(file, cluster=cluster)


def without_file(overrides: Overrides, model: str, folder: Path = Path(), private: bool = False) -> ClusterFile:
    """The cluster of `model` and the flags, without a file: that of `folder`, or (private) of one command."""
    file = registry.without_file(absolute_model(model), overrides.nodes or 1, folder, private)
    if overrides.workers is not None:
        from dllama_zmq.cli.init import with_workers

        cluster = with_workers(file.cluster.model, overrides.workers, overrides.nodes, folder)
        file = replace(file, cluster=replace(cluster, name=file.cluster.name))
    return applied(replace(overrides, nodes=None, workers=None, model=None), file)


def fetched(overrides: Overrides, fetch: bool = False) -> Overrides:
    """The flags with a model of the hub as `model`. It is fetched if --hf-repo names it or `fetch` is true.

    Raises UsageError if two models are named.
    """
    if overrides.hub_model is None:
        if fetch and overrides.model is not None and overrides.model.startswith(HUB_PREFIX):
            _fetch(overrides.model)
        return overrides
    if overrides.model is not None:
        raise UsageError("--model and --hf-repo exclude each other; give one of them")
    name = f"{HUB_PREFIX}{ModelName.parse(overrides.hub_model)}"
    _fetch(name)
    return replace(overrides, model=name, hub_model=None)


def _first(n_nodes: int, file: ClusterFile) -> list[WorkerConfig]:
    workers = file.cluster.workers
    if n_nodes & (n_nodes - 1) or n_nodes > 1 + len(workers):
        cure = "write more workers into it" if file.path.exists() else _anew(file, f"--nodes {n_nodes}")
        raise UsageError(f"--nodes {n_nodes}: {_fixed(file)}; give 1, 2, 4, ... up to that, or {cure}")
    return workers[: n_nodes - 1]


def _fixed(file: ClusterFile) -> str:
    which = f"the cluster of {file.path}" if file.path.exists() else f"cluster {file.cluster.name!r} of this folder"
    return f"{which} has {plural(file.cluster.n_nodes, 'node')}"


def _anew(file: ClusterFile, flags: str) -> str:
    """The commands that change the nodes of a cluster without a file."""
    model = shlex.quote(file.cluster.model)
    return f"take it down and bring it up again: {file.command('down')}, then {file.command(f'up -m {model} {flags}')}"


def check_elsewhere(overrides: Overrides, address: str, model: str) -> None:
    """Raise ClusterError if the flags ask for another model than that of a root on another computer."""
    if any(one is not None for one in (overrides.model, overrides.weights, overrides.tokenizer)):
        raise ClusterError(
            f"the root at {address} is on another computer and runs {model}; leave -m, --weights and --tokenizer "
            "out, or start it there with another model"
        )


def check_running(overrides: Overrides, running: Record, asked: ClusterFile) -> None:
    """Say which flags have no effect on a cluster that runs already. asked: the cluster with the flags applied.

    Raises ClusterError if the flags, or the present file, ask for another model.
    """
    if not asked.runs_the_same(running.file):
        given = any(one is not None for one in (overrides.model, overrides.weights, overrides.tokenizer))
        raise ClusterError(
            f"{running.name} runs {_described(running.file)}, and {'the command' if given else asked.path} asks "
            f"for {_described(asked)}: take it down first ({running.down_command()})"
            + (", or leave -m, --weights and --tokenizer out" if given else "")
        )
    there = running.cluster
    values = {
        "--threads": (overrides.threads, there.root.threads),
        "--sync": (overrides.sync, there.sync),
        "--kernels": (overrides.kernels, there.kernels),
        "--nodes": (overrides.nodes, there.n_nodes),
        "--ctx-size": (overrides.context, there.max_seq_len),
    }
    vain = [f"{flag} {value}" for flag, (value, is_so) in values.items() if value is not None and value != is_so]
    if vain:
        verb = "has" if len(vain) == 1 else "have"
        note(f"{running.name} is running already: {' '.join(vain)} {verb} no effect on it")


def _fetch(name: str) -> None:
    from dllama_zmq.hub.cache import find_pulled

    try:
        find_pulled(name)
    except UsageError:
        from dllama_zmq.cli.pull import fetch

        fetch(ModelName.parse(name))


def _described(file: ClusterFile) -> str:
    weights = "" if file.cluster.weights is None else f" with weights {file.cluster.weights}"
    tokenizer = "" if file.cluster.tokenizer is None else f" with tokenizer {file.cluster.tokenizer}"
    return f"{file.unchecked_model_path().resolve()}{weights}{tokenizer}"
