"""Kernels one after another, without the interpreter between them. numba code."""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import load_i64
from dllama_zmq.kernels.simd.job import n_fields, offsets
from dllama_zmq.kernels.simd.layout import Call, SequenceHead
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.threads import run

register_jitable(run)
HEAD, CALL = offsets(SequenceHead), offsets(Call)
HEAD_BYTES, CALL_BYTES = 8 * n_fields(SequenceHead), 8 * n_fields(Call)


@kernel
def run_sequences(first, second):
    """Run one sequence and then another, or 0. Each kernel begins when the one before is done."""
    run_sequence(first)
    if second != 0:
        run_sequence(second)


@register_jitable
def run_sequence(sequence):
    pool = load_i64(sequence + HEAD.pool)
    for i in range(load_i64(sequence + HEAD.n_calls)):
        call = sequence + HEAD_BYTES + CALL_BYTES * i
        run(
            pool,
            load_i64(call + CALL.kernel),
            load_i64(call + CALL.job),
            load_i64(call + CALL.n_items),
            load_i64(call + CALL.chunk),
        )
