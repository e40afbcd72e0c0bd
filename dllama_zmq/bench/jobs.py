"""The three things that a bench has done for it in processes of their own, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct
from threadpoolctl import threadpool_limits

from dllama_zmq.bench.bandwidth import Reader
from dllama_zmq.bench.blas import blas_macs_per_s, blas_name
from dllama_zmq.bench.cases import Case
from dllama_zmq.bench.measure import Bench, Measured
from dllama_zmq.bench.nodes import Nodes, running
from dllama_zmq.bench.product import ReadAndProduct, read_and_multiply
from dllama_zmq.bench.random_file import write_random
from dllama_zmq.formats import open_model
from dllama_zmq.host import usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.kernels import KernelChoice, choose_kernels, compiled
from dllama_zmq.sharding import DEFAULT_SEQ_LEN
from dllama_zmq.spec import ModelSpec, Sync
from dllama_zmq.telling import Tells


class MachineJob(Struct, frozen=True, tag=True):
    """Measure what this machine can do with `threads` threads, and a product of `kernels`."""

    threads: int
    kernels: KernelChoice


class FileJob(Struct, frozen=True, tag=True):
    """Write random weights."""

    path: str
    spec: ModelSpec


class NodesJob(Struct, frozen=True, tag=True):
    """Measure cases on nodes, this process being their root."""

    model: str
    nodes: Nodes
    cases: Sequence[Case]
    repetitions: int
    sync: Sync
    kernels: KernelChoice
    profile: bool


class Machine(Struct, frozen=True, tag=True):
    """Memory read, products made, and multiply-adds/s of BLAS, which is called `blas`."""

    memory: ReadAndProduct
    blas_macs_per_s: float
    blas: str


class CaseDone(Struct, frozen=True, tag=True):
    """A case has been measured."""

    measured: Measured


Job: TypeAlias = MachineJob | FileJob | NodesJob
Outcome: TypeAlias = Machine | CaseDone


def perform(job: Job, take: Callable[[Outcome], None], tells: Tells, interrupts: Interrupts) -> None:
    """Do `job` in this process; `take` is called with each outcome as soon as it is known."""
    if isinstance(job, NodesJob):
        with threadpool_limits(limits=1):  # the root's own threads share the work; BLAS must not add its own
            _measure(job, take, tells, interrupts)
        return
    with interrupts.raised():
        if isinstance(job, FileJob):
            write_random(Path(job.path), job.spec, tells)
            return
        tells.now(f"how fast memory is read, and multiplied, threads: {job.threads}")
        kernels = choose_kernels(job.kernels, job.threads, job.threads > usable_cores())
        memory = read_and_multiply(job.threads, kernels)
        tells.now(f"how fast BLAS multiplies, threads: {job.threads}")
        take(Machine(memory, blas_macs_per_s(job.threads), blas_name()))


def _measure(job: NodesJob, take: Callable[[Outcome], None], tells: Tells, interrupts: Interrupts) -> None:
    seq_len = max(DEFAULT_SEQ_LEN, *(case.n_positions for case in job.cases))  # as a cluster would have
    with (
        open_model(job.model) as model,
        running(job.nodes, model, job.sync, job.kernels, seq_len, job.profile, tells, interrupts) as root,
        interrupts.raised(),
    ):
        own = compiled(root.kernels) if job.nodes.n_nodes == 1 else None
        bench = Bench(root, tells, str(job.nodes), Reader(job.nodes.all_threads, own))
        for case in job.cases:
            take(CaseDone(bench.run(case, job.repetitions)))
        tells.now(f"{job.nodes}: ending")
