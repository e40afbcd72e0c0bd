"""Receive a node's slices piece by piece into arrays of exactly their size. Knows no socket."""

from __future__ import annotations

import os

import numpy as np

from dllama_zmq.bus.messages import Frame, Weights
from dllama_zmq.bus.messages import Plan as PlanMessage
from dllama_zmq.errors import ProtocolError
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import TensorSpec


class Loading:
    """The slices of `node` under `plan`: tensors in file order, each from its first byte to its last."""

    def __init__(self, plan: Plan, node: int) -> None:
        self._plan = plan
        self._node = node
        self._to_come = iter(plan.shard_tensors())
        self._tensor: TensorSpec | None = None
        self._bytes = np.empty(0, np.uint8)
        self._filled = 0
        self.received_bytes = 0
        self.weights: dict[str, BlockMatrix] = {}
        self._next_tensor()

    @property
    def complete(self) -> bool:
        """Every tensor is here."""
        return self._tensor is None

    def take(self, message: Weights, frames: list[Frame]) -> None:
        """Store one piece. Raises ProtocolError unless it is exactly the next one."""
        if self._tensor is None:
            raise ProtocolError(f"weights of {message.tensor} after the last tensor")
        if (message.tensor, message.offset) != (self._tensor.name, self._filled):
            raise ProtocolError(
                f"weights of {message.tensor} from byte {message.offset}; "
                f"expected {self._tensor.name} from byte {self._filled}"
            )
        if len(message.arrays) != 1 or message.arrays[0].type != "u8" or not frames[0]:
            raise ProtocolError(f"weights of {message.tensor} that are not one array of bytes")
        piece = np.frombuffer(frames[0], np.uint8)
        if self._filled + piece.size > self._bytes.size:
            raise ProtocolError(
                f"{self._filled + piece.size} bytes of {message.tensor}; this node's region has {self._bytes.size}"
            )
        self._bytes[self._filled : self._filled + piece.size] = piece
        self._filled += piece.size
        self.received_bytes += piece.size
        if self._filled == self._bytes.size:
            self._finish(self._tensor)

    def _finish(self, tensor: TensorSpec) -> None:
        rows, columns = self._plan.region(tensor, self._node)
        row_bytes = tensor.float_type.row_bytes(columns.stop - columns.start)
        matrix = self._bytes.reshape(rows.stop - rows.start, row_bytes)
        self.weights[tensor.name] = BlockMatrix(matrix, tensor.float_type)
        self._next_tensor()

    def _next_tensor(self) -> None:
        self._tensor = next(self._to_come, None)
        if self._tensor is not None:
            self._bytes = np.empty(self._plan.region_bytes(self._tensor, self._node), np.uint8)
            self._filled = 0


def check_room(plan: Plan, node: int, order: PlanMessage) -> None:
    """Refuse, before anything is allocated, what this machine could never hold."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kv_bytes = plan.kv_bytes(node, order.pages * KV_PAGE, order.kv)
    for what, nbytes in (("weights", plan.weight_bytes(node)), ("keys and values", kv_bytes)):
        if nbytes > machine:
            raise ProtocolError(
                f"a plan with {nbytes} bytes of {what}; this machine has {machine}: "
                "use more nodes, or a smaller max_seq_len"
            )
