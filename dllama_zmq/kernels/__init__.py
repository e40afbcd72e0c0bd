"""The arithmetic of one node. `numpy` is the reference: the definition that every other back end is tested against."""

from __future__ import annotations

from typing import Literal

from dllama_zmq.kernels.interface import Kernels, Linear
from dllama_zmq.kernels.reduction import tree_sum
from dllama_zmq.kernels.reference import Reference

KernelChoice = Literal["auto", "numpy"]

__all__ = ["KernelChoice", "Kernels", "Linear", "Reference", "choose_kernels", "tree_sum"]


def choose_kernels(choice: KernelChoice, threads: int) -> Kernels:
    """The back end asked for, with `threads` compute threads; `auto` takes the fastest that runs here."""
    del choice  # one back end so far: both names mean it
    return Reference(threads)
