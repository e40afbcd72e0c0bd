"""A cluster's nodes on this computer: which they are, and whether its memory and cores are enough for them."""

from __future__ import annotations

from collections.abc import Iterator

from dllama_zmq.cluster import Cluster, WorkerConfig, is_loopback
from dllama_zmq.formats import ModelFile
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.root.fitting import Wish, check_fits
from dllama_zmq.sharding import Plan, context_length
from dllama_zmq.sources import DEMO


def local_workers(cluster: Cluster) -> list[WorkerConfig]:
    """The workers that run on the root's own host, as its children."""
    return [worker for worker in cluster.workers if is_loopback(worker.host)]


def check_model(cluster: Cluster, model: ModelFile) -> None:
    """Raise PlanError where `model` cannot be split so, or where its nodes here need more memory than there is."""
    plan = Plan.make(model.spec, cluster.n_nodes, str(model.path))
    if cluster.check_memory:
        here = [0, *(node for node, worker in enumerate(cluster.workers, start=1) if is_loopback(worker.host))]
        seq_len = context_length(model.spec, cluster.max_seq_len)
        check_fits(Wish(plan, here, seq_len, cluster.kv_cache, model.path.name), free_memory_bytes())


def doubts(cluster: Cluster, model: ModelFile) -> Iterator[str]:
    """What people should know who start this cluster here, a sentence each."""
    n_here, cores = 1 + len(local_workers(cluster)), usable_cores()
    if n_here > max(1, cores) and cluster.model != DEMO:  # the demo shows how nodes work together
        yield (
            f"{n_here} nodes on {cores} {'core' if cores == 1 else 'cores'} of this computer: slower than one node; "
            "use --nodes 1, or take workers out of the cluster file"
        )
    own = model.spec.seq_len
    if cluster.max_seq_len is not None and cluster.max_seq_len > own:
        yield (
            f"max_seq_len is {cluster.max_seq_len}, and the context of {model.path.name} is {own}: "
            f"{own} positions are used"
        )
