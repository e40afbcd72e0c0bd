"""The rows of the result. GB and GMAC are 10^9, kB 1000 bytes, shares 0 to 1. Fields that do not explain themselves:

test: as llama-bench names it; or `mv q40`, a type's product that runs alone, whose "tokens" are products. n_prompt,
n_gen, depth: the case's. threads: compute threads of each node. tokens_per_s: the mean of the repetitions, but the best
round of `mv`. stddev: the sample's, 0 for one repetition. weight_bytes_per_token, macs_per_token: weights read and
multiply-adds of matrices, by all nodes together; times tokens_per_s they are gb_per_s and gmac_per_s. read_gb_per_s:
memory read between the repetitions with the threads of all nodes, by the loops of read_by. blas_gmac_per_s: with as
many threads. kb_per_token: payload that the root sent and received. wait_share: the part of its time that the root
waited for workers. dot: the instructions of simd's dot product of bytes. cores: CPUs that this process may use.
predicted_tokens_per_s: by SPEED.md, if asked for; None for several sequences, and far into a text.
profile: the root's time; its parts, waiting and Python add up to ms_per_token; calls are those of one repetition.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, TypeAlias

from dllama_zmq.bench.cases import Nodes, work
from dllama_zmq.bench.machine import blas_macs_per_s, measure_products
from dllama_zmq.bench.measure import Measured
from dllama_zmq.kernels import KernelChoice
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType

Row: TypeAlias = dict[str, Any]


def spread(samples: Sequence[float]) -> Row:
    """The mean speed of all samples, its deviation, and the samples."""
    deviation = statistics.stdev(samples) if len(samples) > 1 else 0.0
    return {"tokens_per_s": statistics.mean(samples), "stddev": deviation, "samples_tokens_per_s": list(samples)}


def figures(
    test: str,
    nodes: Nodes,
    samples: Sequence[float],
    taken: tuple[float, float],
    read_bytes_per_s: float,
    best: bool = False,
) -> Row:
    """samples: tokens/s. taken: bytes of weights and multiply-adds for a token. best: the best sample is the speed."""
    weight_bytes, macs = taken
    speed = max(samples) if best else statistics.mean(samples)
    return {
        "test": test,
        "n_prompt": 0,
        "n_gen": 0,
        "depth": 0,
        "parallel": 1,
        "nodes": nodes.n_nodes,
        "threads": nodes.threads,
        **spread(samples),
        "tokens_per_s": speed,
        "repetitions": len(samples),
        "gb_per_s": weight_bytes * speed / 1e9,
        "pct_of_read_bandwidth": 100 * weight_bytes * speed / read_bytes_per_s,
        "gmac_per_s": macs * speed / 1e9,
        "kb_per_token": 0.0,
        "wait_share": 0.0,
        "weight_bytes_per_token": weight_bytes,
        "macs_per_token": macs,
        "read_gb_per_s": read_bytes_per_s / 1e9,
    }


def product_row(threads: int, choice: KernelChoice, weight_type: FloatType) -> Row:
    """The row of the product of a type of weights on `threads` threads, with memory read and BLAS, without the fields
    that all rows share."""
    found, test = measure_products(threads, choice, weight_type), f"mv {weight_type.name.lower()}"
    return {
        **figures(test, Nodes(1, threads), found.per_s, found.taken, found.read_bytes_per_s, best=True),
        "read_by": found.read_by,
        "blas_gmac_per_s": blas_macs_per_s(threads) / 1e9,
    }


def case_row(nodes: Nodes, plan: Plan, measured: Measured) -> Row:
    """The row of a case, without the fields that all rows of a run share."""
    case, timing, n_tokens = measured.case, measured.timing, measured.case.n_counted
    weight_bytes, macs = (taken / len(measured.seconds) for taken in work(plan, measured.steps))
    speeds = [n_tokens / seconds for seconds in measured.seconds]
    return {
        **figures(case.name, nodes, speeds, (weight_bytes / n_tokens, macs / n_tokens), measured.read_bytes_per_s),
        ("n_prompt" if case.kind == "pp" else "n_gen"): case.n_tokens,
        "depth": case.depth,
        "parallel": case.parallel,
        "kb_per_token": (timing.sent_bytes + timing.received_bytes) / (n_tokens * len(speeds)) / 1000,
        "wait_share": timing.wait_s / timing.wall_s,
        **(_of_many(measured) if case.parallel > 1 else {}),
        **({} if measured.kernels is None else {"profile": _profile(measured, measured.kernels)}),
    }


def _of_many(measured: Measured) -> Row:
    """The figures of sequences that run together: tokens/s of each; or the speed of a new prompt beside them, and
    theirs beside it."""
    if measured.gaps is None:
        each = measured.case.n_tokens
        return {"tokens_per_s_each": statistics.mean(each / seconds for seconds in measured.seconds)}
    return {"first_token_s": statistics.mean(measured.seconds), **measured.gaps.figures()}


def _profile(measured: Measured, kernels: dict[str, tuple[float, int]]) -> Row:
    """kernels: seconds and calls. Those that ran come in the order of their time, the longest first."""
    n_repetitions, wall_s, wait_s = len(measured.seconds), sum(measured.seconds), measured.timing.wait_s
    python_s = wall_s - wait_s - sum(seconds for seconds, _ in kernels.values())
    ms = 1000 / (n_repetitions * measured.case.n_counted)
    return {
        "ms_per_token": ms * wall_s,
        "parts": [
            {
                "name": name,
                "ms_per_token": ms * seconds,
                "share": seconds / wall_s,
                "calls": calls / n_repetitions,
                "us_per_call": 1e6 * seconds / calls,
            }
            for name, (seconds, calls) in sorted(kernels.items(), key=lambda kernel: -kernel[1][0])
            if calls
        ],
        "wait_ms_per_token": ms * wait_s,
        "wait_share": wait_s / wall_s,
        "python_ms_per_token": ms * python_s,
        "python_share": python_s / wall_s,
    }
