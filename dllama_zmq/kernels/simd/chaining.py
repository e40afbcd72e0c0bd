"""Jobs one after another, without the interpreter between them. numba code."""

from __future__ import annotations

from numba.extending import register_jitable

from dllama_zmq.kernels.simd.intrinsics import load_i64
from dllama_zmq.kernels.simd.layout import (
    CHAIN_POOL,
    LINK_BYTES,
    LINK_CHUNK,
    LINK_ITEMS,
    LINK_JOB,
    LINK_KERNEL,
    LINKS,
    N_LINKS,
)
from dllama_zmq.kernels.simd.registry import kernel
from dllama_zmq.kernels.simd.threads import run

register_jitable(run)


@kernel
def run_chains(first, second):
    """Each link's job by its chain's pool; the next begins when all of it is done. second: another chain, or 0."""
    run_links(first)
    if second != 0:
        run_links(second)


@register_jitable
def run_links(chain):
    pool = load_i64(chain + CHAIN_POOL)
    for i in range(load_i64(chain + N_LINKS)):
        link = chain + LINKS + LINK_BYTES * i
        run(
            pool, load_i64(link + LINK_KERNEL), load_i64(link + LINK_JOB), load_i64(link + LINK_ITEMS),
            load_i64(link + LINK_CHUNK),
        )  # fmt: skip
