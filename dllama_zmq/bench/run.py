"""A whole run: what is asked for is checked, the machine measured, then every case on every number of nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dllama_zmq import __version__
from dllama_zmq.bench.apart import run_apart
from dllama_zmq.bench.cases import Case
from dllama_zmq.bench.host import cpu_name, read_proc, source_commit
from dllama_zmq.bench.jobs import CaseDone, FileJob, Machine, MachineJob, NodesJob, Outcome
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.bench.output import Output
from dllama_zmq.bench.random_file import cache_folder, is_file_of, shape_title
from dllama_zmq.bench.rows import Baseline, Facts, make_product_row, make_row
from dllama_zmq.errors import ClusterError, RequestError
from dllama_zmq.formats import open_model
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.kernels import KernelChoice, choose_kernels, prepare_kernels, told_to
from dllama_zmq.models import tensor_table
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import Plan, kernel_needs
from dllama_zmq.sources import DATA_FOLDER, DEMO
from dllama_zmq.spec import FloatType, ModelSpec, Sync
from dllama_zmq.telling import Tells


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A published shape with some numbers of its own (keys of shapes.OVERRIDES), to be filled with random weights."""

    shape: str
    weight_type: FloatType = FloatType.Q40
    overrides: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure: each case on each of `nodes`. `model` is a file, "demo", or random; `command` says all this.

    profile: with each case, where the root's time goes.
    """

    model: str | RandomModel
    cases: Sequence[Case]
    nodes: Sequence[Nodes]
    repetitions: int
    sync: Sync
    kernels: KernelChoice
    command: str
    profile: bool = False


def run_bench(settings: BenchSettings, output: Output, tells: Tells) -> None:
    """Measure everything; rows go to `output`, progress to `tells`.

    Raises, before anything is measured, UsageError, FormatError, PlanError, RequestError (a case longer than the
    context) and ClusterError (not enough memory); later ClusterError where a node fails.
    """
    interrupts = Interrupts()
    with interrupts.caught():
        path, spec, title = _model(settings, tells, interrupts)
        facts = _measure_machine(settings, path, spec, title, tells, interrupts)
        with interrupts.raised():
            output.begin(facts)
            for threads in facts.baselines:
                output.row(make_product_row(facts, threads))
        for nodes in settings.nodes:
            tells.line(str(nodes))
            job = NodesJob(
                str(path), nodes, settings.cases, settings.repetitions, settings.sync, settings.kernels,
                settings.profile,
            )  # fmt: skip

            def take(outcome: Outcome, nodes: Nodes = nodes) -> None:
                assert isinstance(outcome, CaseDone)
                output.row(make_row(facts, nodes, outcome.measured))

            run_apart(job, take, tells, interrupts)
        with interrupts.raised():
            output.end()


def check(spec: ModelSpec, title: str, cases: Sequence[Case], all_nodes: Sequence[Nodes], free_bytes: int) -> None:
    """Raise RequestError, PlanError or ClusterError where `spec` cannot do this on a machine with `free_bytes`."""
    for case in cases:
        if case.n_positions > spec.seq_len:
            raise RequestError(
                f"{case.name} needs {case.n_positions} positions, and the context of {title} has {spec.seq_len}"
            )
    n_positions = max(case.n_positions for case in cases)
    for nodes in all_nodes:
        plan = Plan.make(spec, nodes.n_nodes)
        needed = sum(plan.weight_bytes(node) + plan.kv_bytes(node, n_positions) for node in range(plan.n_nodes))
        if needed > free_bytes:
            raise ClusterError(
                f"{title} over {nodes.n_nodes} {'node' if nodes.n_nodes == 1 else 'nodes'} needs "
                f"{needed / 1e9:.1f} GB of memory, and {free_bytes / 1e9:.1f} GB are free here; take a smaller model"
                " (--shape with --layers cuts one short)"
            )


def _model(settings: BenchSettings, tells: Tells, interrupts: Interrupts) -> tuple[Path, ModelSpec, str]:
    """The model's file, made where it is a shape that is not kept yet, and found fit for all that is asked for."""
    found = free_memory_bytes()
    free_bytes = found if found is not None else 1 << 62
    if isinstance(settings.model, str):
        path = DATA_FOLDER / f"{DEMO}.m" if settings.model == DEMO else Path(settings.model)
        with open_model(path) as model:
            check(model.spec, settings.model, settings.cases, settings.nodes, free_bytes)
            return path, model.spec, settings.model
    random = settings.model
    spec = shape(random.shape, random.weight_type, random.overrides)
    title = shape_title(random.shape, random.weight_type, random.overrides)
    check(spec, title, settings.cases, settings.nodes, free_bytes)  # before gigabytes are written for nothing
    path = cache_folder() / f"{title}.m"
    if not is_file_of(spec, path):
        run_apart(FileJob(str(path), spec), lambda outcome: None, tells, interrupts)
    return path, spec, title


def _measure_machine(
    settings: BenchSettings, path: Path, spec: ModelSpec, title: str, tells: Tells, interrupts: Interrupts
) -> Facts:
    """What this machine can do with each number of threads that a row will use, and all else that rows share."""
    tells.now("getting the kernels ready")  # once here, and not while the first children are timed
    with interrupts.raised():
        needs = kernel_needs(spec, max(nodes.n_nodes for nodes in settings.nodes), "f16")
        prepare_kernels(settings.kernels, needs, told_to(tells))
        kernels = choose_kernels(settings.kernels, 1).name
        dot = _dot() if kernels == "simd" else None
    cores = usable_cores()
    found: dict[int, Machine] = {}
    for threads in sorted({nodes.all_threads for nodes in settings.nodes}):
        if threads > cores:
            tells.line(f"{threads} compute threads will share {cores} cores")

        def take(outcome: Outcome, threads: int = threads) -> None:
            assert isinstance(outcome, Machine)
            found[threads] = outcome

        run_apart(MachineJob(threads, settings.kernels), take, tells, interrupts)
    tensors = tensor_table(spec)
    return Facts(
        model=title,
        shape=settings.model.shape.lower() if isinstance(settings.model, RandomModel) else None,
        spec=spec,
        model_bytes=sum(tensor.nbytes(spec) for tensor in tensors),
        n_weights=sum(rows * columns for rows, columns in (tensor.shape(spec) for tensor in tensors)),
        sync=settings.sync,
        kernels=kernels,
        dot=dot,
        cpu=cpu_name(read_proc("cpuinfo")),
        cores=cores,
        hardware_threads=os.cpu_count() or cores,
        blas=next(iter(found.values())).blas,
        baselines={
            threads: Baseline(
                machine.memory.read_bytes_per_s,
                machine.blas_macs_per_s,
                machine.memory.read_by,
                machine.memory.products_per_s,
            )
            for threads, machine in found.items()
        },
        version=__version__,
        commit=source_commit(),
        command=settings.command,
    )


def _dot() -> str:
    """The dot product of bytes that this CPU's kernels are made of."""
    from dllama_zmq.kernels.simd.host import host_target

    return host_target().dot
