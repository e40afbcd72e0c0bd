"""The arithmetic of one node. `numpy` is the reference: the definition that every other back end is tested against."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

from dllama_zmq.errors import UsageError
from dllama_zmq.kernels.batch import KV_PAGE, Batch, Span, pages_for
from dllama_zmq.kernels.interface import (
    CacheSpec,
    Experts,
    Kernels,
    KVCache,
    KVType,
    Linear,
    Native,
    Norm,
    Reduction,
    Rotation,
)
from dllama_zmq.kernels.needs import Compiling, Needs, reported_to
from dllama_zmq.kernels.reduction import tree_sum
from dllama_zmq.kernels.reference import Reference
from dllama_zmq.kernels.tiles import KeptTiles

logger = logging.getLogger(__name__)

KernelChoice = Literal["auto", "simd", "numpy"]

__all__ = [
    "KV_PAGE",
    "Batch",
    "CacheSpec",
    "Compiling",
    "Experts",
    "KVCache",
    "KVType",
    "KeptTiles",
    "KernelChoice",
    "Kernels",
    "Linear",
    "Native",
    "Needs",
    "Norm",
    "Reduction",
    "Reference",
    "Rotation",
    "Span",
    "choose_kernels",
    "pages_for",
    "prepare_kernels",
    "reported_to",
    "simd_obstacle",
    "tree_sum",
]


def choose_kernels(
    choice: KernelChoice, threads: int, oversubscribed: bool = False, kept: KeptTiles | None = None
) -> Kernels:
    """The back end asked for, with `threads` compute threads; `auto` takes the fastest that runs here, and logs why.

    oversubscribed: the host has fewer cores than its nodes have threads. kept: where repacked weights are kept for the
    next start; None: nowhere. Raises UsageError if `simd` cannot run.
    """
    if choice == "numpy":
        return Reference(threads)
    obstacle = simd_obstacle()
    if not obstacle:
        from dllama_zmq.kernels.simd.backend import Simd
        from dllama_zmq.kernels.simd.host import host_cpu, host_target

        if choice == "auto":
            logger.info("kernels simd for %s: dot=%s threads=%d", host_cpu()[1], host_target().products, threads)
        return Simd(threads, oversubscribed, kept)
    if choice == "simd":
        raise UsageError(f"kernels simd cannot run here: {obstacle}; use kernels: numpy")
    logger.warning("kernels numpy, which are slow: simd cannot run here: %s", obstacle)
    return Reference(threads)


def prepare_kernels(
    choice: KernelChoice,
    needs: Needs,
    on_progress: Callable[[Compiling], None] | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> None:
    """Compile now what the back end of `choose_kernels` will need; nothing where it is kept already.

    What it turns out to need beyond that, it compiles when a model is made ready. `on_progress` is called 5 times a
    second while it compiles; where None, a line on a terminal or in the log says how far it is. `warn` is called
    once in a process, where the kernels cannot be kept in their folder.
    """
    if choice != "numpy" and not simd_obstacle():
        from dllama_zmq.kernels.simd.catalog import needed
        from dllama_zmq.kernels.simd.library import library

        library().load(needed(needs), on_progress, warn)


def simd_obstacle() -> str:
    """Why the fast back end cannot run here; empty where it can."""
    if sys.maxsize < 1 << 32 or sys.byteorder != "little":
        return "it needs a 64-bit little-endian CPU"
    for package in ("llvmlite", "numba"):
        if find_spec(package) is None:  # found, not imported: only compiling needs numba
            return f"{package} is not installed"
    return ""
