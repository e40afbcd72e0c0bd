"""The rows of the result: figures made of what was measured, and the run that they belong to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from msgspec import Struct

from dllama_zmq.bench.cases import work
from dllama_zmq.bench.measure import Measured
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import ModelSpec, Sync


@dataclass(frozen=True, slots=True)
class Baseline:
    """What this machine does in the same run with some number of threads: bytes read, multiply-adds of BLAS."""

    read_bytes_per_s: float
    blas_macs_per_s: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What all rows of a run share. `baselines` are by compute threads of all nodes together."""

    model: str
    shape: str | None
    spec: ModelSpec
    model_bytes: int
    n_weights: int
    sync: Sync
    kernels: str
    cpu: str
    cores: int
    blas: str
    baselines: dict[int, Baseline]
    version: str
    commit: str
    command: str


class Row(Struct, frozen=True, kw_only=True):
    """One case on one number of nodes and threads. GB and GMAC are 10^9; kb_per_token is in 1024 bytes."""

    test: str
    n_prompt: int
    n_gen: int
    depth: int
    nodes: int
    threads: int
    """Compute threads of each node."""
    tokens_per_s: float
    """Mean of the repetitions; `stddev` is that of the sample, 0 for one repetition."""
    stddev: float
    samples_tokens_per_s: list[float]
    repetitions: int
    gb_per_s: float
    """Weights that all nodes together read: `weight_bytes_per_token` times `tokens_per_s`."""
    pct_of_read_bandwidth: float
    gmac_per_s: float
    """Multiply-adds of all nodes' matrices: `macs_per_token` times `tokens_per_s`."""
    kb_per_token: float
    """Payload that the root sent and received, all workers together."""
    wait_share: float
    """Of the root's time, the part in which it waited for the others."""
    weight_bytes_per_token: float
    macs_per_token: float
    read_gb_per_s: float
    blas_gmac_per_s: float
    model: str
    shape: str | None
    weights: str
    model_bytes: int
    sync: str
    kernels: str
    cpu: str
    cores: int
    blas: str
    version: str
    commit: str
    command: str


def make_row(facts: Facts, nodes: Nodes, measured: Measured) -> Row:
    """The row of what was measured on `nodes`."""
    case, timing = measured.case, measured.timing
    n_tokens = case.n_tokens
    speeds = [n_tokens / seconds for seconds in measured.seconds]
    speed = statistics.mean(speeds)
    needed = work(Plan.make(facts.spec, nodes.n_nodes), case)
    baseline = facts.baselines[nodes.all_threads]
    bytes_per_s = needed.weight_bytes / n_tokens * speed
    return Row(
        test=case.name,
        n_prompt=n_tokens if case.kind == "pp" else 0,
        n_gen=n_tokens if case.kind == "tg" else 0,
        depth=case.depth,
        nodes=nodes.n_nodes,
        threads=nodes.threads,
        tokens_per_s=speed,
        stddev=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        samples_tokens_per_s=speeds,
        repetitions=len(speeds),
        gb_per_s=bytes_per_s / 1e9,
        pct_of_read_bandwidth=100 * bytes_per_s / baseline.read_bytes_per_s,
        gmac_per_s=needed.macs / n_tokens * speed / 1e9,
        kb_per_token=(timing.sent_bytes + timing.received_bytes) / (n_tokens * len(speeds)) / 1024,
        wait_share=timing.wait_s / timing.wall_s,
        weight_bytes_per_token=needed.weight_bytes / n_tokens,
        macs_per_token=needed.macs / n_tokens,
        read_gb_per_s=baseline.read_bytes_per_s / 1e9,
        blas_gmac_per_s=baseline.blas_macs_per_s / 1e9,
        model=facts.model,
        shape=facts.shape,
        weights=facts.spec.weight_type.name.lower(),
        model_bytes=facts.model_bytes,
        sync=facts.sync,
        kernels=facts.kernels,
        cpu=facts.cpu,
        cores=facts.cores,
        blas=facts.blas,
        version=facts.version,
        commit=facts.commit,
        command=facts.command,
    )
