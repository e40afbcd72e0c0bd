"""The rows of the result: figures made of what was measured, and the run that they belong to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from msgspec import Struct

from dllama_zmq.bench.cases import work
from dllama_zmq.bench.measure import Measured
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.bench.product import COLUMNS, NAME, ROWS, WEIGHT_BYTES
from dllama_zmq.bench.profile import Profile, make_profile
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import ModelSpec, Sync


@dataclass(frozen=True, slots=True)
class Baseline:
    """What this machine does in the same run with some number of threads.

    Bytes read (`read_by` simd's code or numpy's) and multiply-adds of BLAS; rounds of Q40 matrix-vector products.
    """

    read_bytes_per_s: float
    blas_macs_per_s: float
    read_by: str
    products_per_s: tuple[float, ...]


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
    dot: str | None
    """How `kernels` simd sums products of bytes (`Target.dot`)."""
    cpu: str
    cores: int
    """CPUs that this process may use, of the machine's `hardware_threads`."""
    hardware_threads: int
    blas: str
    baselines: dict[int, Baseline]
    version: str
    commit: str
    command: str


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One case on one number of nodes and threads. GB and GMAC are 10^9, kB 1000 bytes.

    `mv q40` is no case: a Q40 matrix times a vector, whose "tokens" are products; on one node of all threads.
    """

    test: str
    n_prompt: int
    n_gen: int
    depth: int
    nodes: int
    threads: int
    """Compute threads of each node."""
    tokens_per_s: float
    """Mean of the repetitions, but the best of `mv q40`; `stddev` is that of the sample, 0 for one repetition."""
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
    """With as many threads as all nodes have, by the loops of `read_by`, between the repetitions."""
    read_by: str
    blas_gmac_per_s: float
    model: str
    shape: str | None
    weights: str
    model_bytes: int
    sync: str
    kernels: str
    dot: str | None
    cpu: str
    cores: int
    hardware_threads: int
    blas: str
    version: str
    commit: str
    command: str
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class _Speed:
    """What a row is about: tokens/s of every repetition and the one figure for them; what a token takes."""

    tokens_per_s: float
    samples: list[float]
    read_bytes_per_s: float
    weight_bytes: float
    macs: float
    kb: float = 0.0
    wait_share: float = 0.0


def make_row(facts: Facts, nodes: Nodes, measured: Measured) -> Row:
    """The row of what was measured on `nodes`."""
    case, timing = measured.case, measured.timing
    n_tokens, speeds = case.n_tokens, [case.n_tokens / seconds for seconds in measured.seconds]
    needed = work(Plan.make(facts.spec, nodes.n_nodes), case)
    speed = _Speed(
        tokens_per_s=statistics.mean(speeds),
        samples=speeds,
        read_bytes_per_s=measured.read_bytes_per_s,
        weight_bytes=needed.weight_bytes / n_tokens,
        macs=needed.macs / n_tokens,
        kb=(timing.sent_bytes + timing.received_bytes) / (n_tokens * len(speeds)) / 1000,
        wait_share=timing.wait_s / timing.wall_s,
    )
    counts = (n_tokens, 0) if case.kind == "pp" else (0, n_tokens)
    return _row(facts, nodes, case.name, counts, case.depth, speed, make_profile(measured))


def make_product_row(facts: Facts, threads: int) -> Row:
    """The row of the matrix-vector product alone, on `threads` threads."""
    baseline = facts.baselines[threads]
    samples = list(baseline.products_per_s)
    speed = _Speed(max(samples), samples, baseline.read_bytes_per_s, WEIGHT_BYTES, ROWS * COLUMNS)
    return _row(facts, Nodes(1, threads), NAME, (0, 0), 0, speed, None)


def _row(
    facts: Facts, nodes: Nodes, test: str, counts: tuple[int, int], depth: int, speed: _Speed, profile: Profile | None
) -> Row:
    baseline = facts.baselines[nodes.all_threads]
    bytes_per_s = speed.weight_bytes * speed.tokens_per_s
    return Row(
        test=test,
        n_prompt=counts[0],
        n_gen=counts[1],
        depth=depth,
        nodes=nodes.n_nodes,
        threads=nodes.threads,
        tokens_per_s=speed.tokens_per_s,
        stddev=statistics.stdev(speed.samples) if len(speed.samples) > 1 else 0.0,
        samples_tokens_per_s=speed.samples,
        repetitions=len(speed.samples),
        gb_per_s=bytes_per_s / 1e9,
        pct_of_read_bandwidth=100 * bytes_per_s / speed.read_bytes_per_s,
        gmac_per_s=speed.macs * speed.tokens_per_s / 1e9,
        kb_per_token=speed.kb,
        wait_share=speed.wait_share,
        weight_bytes_per_token=speed.weight_bytes,
        macs_per_token=speed.macs,
        read_gb_per_s=speed.read_bytes_per_s / 1e9,
        read_by=baseline.read_by,
        blas_gmac_per_s=baseline.blas_macs_per_s / 1e9,
        model=facts.model,
        shape=facts.shape,
        weights=facts.spec.weight_type.name.lower(),
        model_bytes=facts.model_bytes,
        sync=facts.sync,
        kernels=facts.kernels,
        dot=facts.dot,
        cpu=facts.cpu,
        cores=facts.cores,
        hardware_threads=facts.hardware_threads,
        blas=facts.blas,
        version=facts.version,
        commit=facts.commit,
        command=facts.command,
        profile=profile,
    )
