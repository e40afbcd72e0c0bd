"""A whole run: the request is checked, the machine measured, then each case on each number of nodes."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from dllama_zmq import __version__
from dllama_zmq.bench.calibration import measure_rates
from dllama_zmq.bench.cases import BenchSettings, Case, Nodes
from dllama_zmq.bench.child import measure_in_child
from dllama_zmq.bench.machine import blas_name, cpu_name, source_commit
from dllama_zmq.bench.random_file import kept_shape, shape_title
from dllama_zmq.bench.rows import Row, product_row
from dllama_zmq.bench.speed import Layout, Rates, decoding, prompt
from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.errors import ClusterError, RequestError
from dllama_zmq.formats import open_model
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.kernels import choose_kernels, prepare_kernels, reported_to
from dllama_zmq.models import main_types, tensor_table, types_in_words
from dllama_zmq.reporting import Reporter, plural
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import Plan, kernel_needs
from dllama_zmq.sources import model_at
from dllama_zmq.spec import ModelSpec, Sync


def run_bench(settings: BenchSettings, reporter: Reporter) -> Generator[list[Row], None, None]:
    """Measure everything. Rows come as soon as they are known: first those of the product, then those of each case.

    Raises UsageError, FormatError, PlanError, RequestError (a case longer than the context) or ClusterError (too little
    memory) before anything is measured; ClusterError later if a node fails. Signals raise here, not in the caller, and
    no process is left behind once the iterator is closed.
    """
    interrupts = Interrupts()
    with interrupts.caught():
        with interrupts.raised():
            path, spec, title = _model(settings, reporter)
            reporter.activity("getting the kernels ready")  # here, not while the first child is timed
            needs = kernel_needs(spec, max(nodes.n_nodes for nodes in settings.nodes), "f16", EXCHANGE_KERNELS)
            prepare_kernels(settings.kernels, needs, reported_to(reporter), reporter.line)
            facts = _facts(settings, spec, title)
            cores, products = usable_cores(), dict[int, list[Row]]()
            for threads in sorted({nodes.all_threads for nodes in settings.nodes}):
                if threads > cores:
                    reporter.line(f"{threads} compute threads will share {cores} cores")
                reporter.activity(f"measuring memory, products and BLAS with {plural(threads, 'thread')}")
                products[threads] = [
                    {**product_row(threads, settings.kernels, kind), **facts} for kind in main_types(spec)
                ]
        yield [row for rows in products.values() for row in rows]
        for nodes in settings.nodes:
            reporter.activity(f"{nodes}: starting")
            same = {name: products[nodes.all_threads][0][name] for name in ("read_by", "blas_gmac_per_s", *facts)}
            own = replace(settings, model=str(path), nodes=[nodes])
            if settings.predict:
                asked = spec.weight_type, settings.sync, settings.kernels
                rates = measure_rates(*asked, [nodes], reporter, interrupts)[nodes]
                reporter.activity(f"{nodes}: starting")
            with closing(measure_in_child(own, reporter, interrupts)) as rows:
                for case, row in zip(settings.cases, rows, strict=True):
                    beside = _prediction(spec, case, nodes, rates, settings.sync) if settings.predict else {}
                    yield [{**row, **same, **beside}]


def _prediction(spec: ModelSpec, case: Case, nodes: Nodes, rates: Rates, sync: Sync) -> Row:
    """The predicted tokens/s of a sequence alone at the beginning of a text; None for other cases."""
    if case.parallel > 1 or case.depth:
        return {"predicted_tokens_per_s": None}
    plan, layout = Plan.make(spec, nodes.n_nodes), Layout([range(nodes.n_nodes)], [rates])
    terms = decoding(plan, sync, layout) if case.kind == "tg" else prompt(plan, sync, layout, case.n_tokens)
    return {"predicted_tokens_per_s": terms.tokens_per_s}


def check(spec: ModelSpec, title: str, cases: Sequence[Case], all_nodes: Sequence[Nodes], free_bytes: int) -> None:
    """Raise RequestError, PlanError or ClusterError if `spec` cannot do this on a machine with `free_bytes`."""
    for case in cases:
        if case.n_positions > spec.seq_len:
            raise RequestError(
                f"{case.name} needs {case.n_positions} positions, and the context of {title} has {spec.seq_len}"
            )
    n_positions = max(case.n_all_positions for case in cases)
    for nodes in all_nodes:
        plan = Plan.make(spec, nodes.n_nodes)
        needed = sum(plan.weight_bytes(node) + plan.kv_bytes(node, n_positions) for node in range(plan.n_nodes))
        if needed > free_bytes:
            raise ClusterError(
                f"{title} over {plural(nodes.n_nodes, 'node')} needs {needed / 1e9:.1f} GB of memory, and "
                f"{free_bytes / 1e9:.1f} GB are free here; take a smaller model (--shape with --layers cuts one short)"
            )


def _model(settings: BenchSettings, reporter: Reporter) -> tuple[Path, ModelSpec, str]:
    """The model's file, which is made if it is a random one and not there yet."""
    free_bytes = free_memory_bytes()
    found = (settings.cases, settings.nodes, 1 << 62 if free_bytes is None else free_bytes)
    if isinstance(settings.model, str):
        path = model_at(settings.model)
        with open_model(path) as model:
            check(model.spec, settings.model, *found)
            return path, model.spec, settings.model
    given = (settings.model.shape, settings.model.weight_type, settings.model.overrides)
    spec, title = shape(*given), shape_title(*given)
    check(spec, title, *found)  # before gigabytes are written in vain
    return kept_shape(spec, title, reporter), spec, title


def _facts(settings: BenchSettings, spec: ModelSpec, title: str) -> Row:
    """The fields that all rows share."""
    kernels, tensors = choose_kernels(settings.kernels, 1).name, tensor_table(spec)
    dot = None
    if kernels == "simd":
        from dllama_zmq.kernels.simd.host import host_target

        dot = host_target().products
    return {
        "model": title,
        "shape": None if isinstance(settings.model, str) else settings.model.shape.lower(),
        "weights": types_in_words(spec),
        "model_bytes": sum(tensor.nbytes(spec) for tensor in tensors),
        "n_weights": sum(rows * columns for rows, columns in (tensor.shape(spec) for tensor in tensors)),
        "sync": settings.sync,
        "kernels": kernels,
        "dot": dot,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "hardware_threads": os.cpu_count() or usable_cores(),
        "blas": blas_name(),
        "version": __version__,
        "commit": source_commit(),
        "command": settings.command,
    }
