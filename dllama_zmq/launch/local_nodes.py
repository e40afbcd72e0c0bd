"""The nodes of a cluster on this computer: their threads, their model, and whether memory is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

import msgspec

from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.cluster import Cluster, ClusterFile, is_here
from dllama_zmq.errors import FormatError
from dllama_zmq.formats import ModelFile, open_model, read_tokenizer
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.kernels import Needs
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import plural
from dllama_zmq.root.fitting import Wish, check_fits, check_kv_memory
from dllama_zmq.sharding import KVBudget, Plan, context_length, kernel_needs
from dllama_zmq.sources import DEMO
from dllama_zmq.tokenizer import Tokenizer

Threads = int | Literal["auto"]


def local_workers(cluster: Cluster) -> list[WorkerConfig]:
    """The workers that run on the root's host, as its children."""
    return [worker for worker in cluster.workers if is_here(worker)]


def node_threads(cluster: Cluster) -> tuple[int, list[WorkerConfig], bool]:
    """The root's threads; this host's workers, each with its number of threads; whether there are too few cores."""
    workers = local_workers(cluster)
    (own, *others), oversubscribed = shared(
        [cluster.root.threads, *(worker.threads for worker in workers)], usable_cores()
    )
    counted = [msgspec.structs.replace(worker, threads=n) for worker, n in zip(workers, others, strict=True)]
    return own, counted, oversubscribed


def shared(wanted: Sequence[Threads], cores: int) -> tuple[list[int], bool]:
    """The threads of each node of a host: those of `wanted`, or an equal share of `cores` for "auto"; too few cores?"""
    share = max(1, cores // max(1, len(wanted)))
    threads = [share if n == "auto" else n for n in wanted]
    return threads, sum(threads) > cores


def open_checked(file: ClusterFile, warn: Callable[[str], None]) -> tuple[ModelFile, Tokenizer]:
    """Open the cluster's model and tokenizer. `warn` is called with a sentence for each oddity.

    Raises ConfigError, FormatError; PlanError if the model cannot be split over these nodes, or memory here is too
    small.
    """
    with ExitStack() as cleanup:
        model = cleanup.enter_context(open_checked_model(file, warn))
        tokenizer = checked_tokenizer(file, model, warn)
        cleanup.pop_all()
    return model, tokenizer


def open_checked_model(file: ClusterFile, warn: Callable[[str], None]) -> ModelFile:
    """The first half of `open_checked`."""
    with ExitStack() as cleanup:
        model = cleanup.enter_context(open_model(file.model_path(), file.cluster.weight_type))
        _check_plan(file.cluster, model)
        for sentence in (*_doubts(file.cluster, model), *model.notes):
            warn(sentence)
        cleanup.pop_all()
    return model


def checked_tokenizer(file: ClusterFile, model: ModelFile, warn: Callable[[str], None]) -> Tokenizer:
    """The other half: the tokenizer. If the model's own cannot be used, the error says how to give another."""
    try:
        tokenizer = read_tokenizer(file.tokenizer_path())
        tokenizer.check_fits(model.spec, model.path)
    except FormatError as error:
        if file.cluster.tokenizer is not None:
            raise
        in_file = f", or `tokenizer:` in {file.path.name}," if not file.private and file.path.exists() else ""
        raise type(error)(f"{error} --tokenizer FILE{in_file} gives another one.") from error
    if sentence := tokenizer.mismatch_warning(model.spec, model.path):
        warn(sentence)
    return tokenizer


def needs_of(file: ClusterFile, model: ModelFile) -> Needs:
    """The kernels that the cluster's nodes need."""
    return kernel_needs(model.spec, file.cluster.n_nodes, file.cluster.kv_cache, EXCHANGE_KERNELS)


def _check_plan(cluster: Cluster, model: ModelFile) -> None:
    plan = Plan.make(model.spec, cluster.n_nodes, str(model.path))
    seq_len = context_length(model.spec, cluster.max_seq_len)
    check_kv_memory(KVBudget(plan, cluster.kv_cache, seq_len, cluster.max_sequences, cluster.kv_bytes))
    if cluster.check_memory:
        here = [0, *(node for node, worker in enumerate(cluster.workers, start=1) if is_here(worker))]
        check_fits(Wish(plan, here, seq_len, cluster.kv_cache, model.path.name), free_memory_bytes())


def _doubts(cluster: Cluster, model: ModelFile) -> Iterator[str]:
    """Warnings for the person who starts this cluster, a sentence each."""
    n_here, cores = 1 + len(local_workers(cluster)), usable_cores()
    if n_here > max(1, cores) and cluster.model != DEMO:  # the demo shows several nodes at work
        yield (
            f"{n_here} nodes on {plural(cores, 'core')} of this computer: slower than one node; "
            "use --nodes 1, or take workers out of the cluster file"
        )
    own = model.spec.seq_len
    if cluster.max_seq_len is not None and cluster.max_seq_len > own:
        yield (
            f"max_seq_len is {cluster.max_seq_len}, and the context of {model.path.name} is {own}: "
            f"{own} positions are used"
        )
