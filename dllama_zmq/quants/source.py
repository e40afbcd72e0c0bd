"""Block types of GGUF files for which there are no kernels: converted to a type that has kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from msgspec import Struct

from dllama_zmq.quants.parts import F32, U8, Parts
from dllama_zmq.spec import FloatType

_CHUNK_VALUES = 1 << 18
"""Values converted at a time: their temporaries stay in a CPU's cache."""


class SourceType(Struct, frozen=True):
    """A block type that no kernel computes with; its tensors are read as `read_as`."""

    name: str
    block_values: int
    block_bytes: int
    read_as: FloatType
    _parts: Callable[[U8], Parts]
    """Blocks (n, block_bytes) as their parts, of n rows."""
    _blocks: Callable[[U8], U8]
    """Blocks (n, block_bytes) as blocks of `read_as`, (n, bytes of as many values)."""

    def row_bytes(self, n_values: int) -> int:
        """Bytes of `n_values` values, a multiple of the block's."""
        return n_values // self.block_values * self.block_bytes

    def convert(self, data: U8) -> U8:
        """Bytes (rows, row_bytes(n)) as blocks of `read_as`, (rows, read_as.row_bytes(n))."""
        blocks = data.reshape(-1, self.block_bytes)
        out = np.empty((len(blocks), self.read_as.row_bytes(self.block_values)), np.uint8)
        chunk_blocks = _CHUNK_VALUES // self.block_values
        with np.errstate(all="ignore"):  # the scales of a hostile file may be anything
            for first in range(0, len(blocks), chunk_blocks):
                out[first : first + chunk_blocks] = self._blocks(blocks[first : first + chunk_blocks])
        return out.reshape(len(data), self.read_as.row_bytes(self.values_in(data.shape[1])))

    def dequantize(self, data: U8) -> F32:
        """Bytes (rows, row_bytes(n)) as the values (rows, n) of the file, which `read_as` may not hold exactly."""
        with np.errstate(all="ignore"):
            parts = self._parts(data.reshape(-1, self.block_bytes))
        return parts.values().reshape(len(data), self.values_in(data.shape[1]))

    def values_in(self, n_bytes: int) -> int:
        """How many values `n_bytes` of whole blocks are."""
        return n_bytes // self.block_bytes * self.block_values


StoredType: TypeAlias = FloatType | SourceType
"""A type of tensors in files."""
