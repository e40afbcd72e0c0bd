"""Stream one worker its slices straight from the mapped file: a piece for each credit, no copy of the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dllama_zmq.bus.arrays import pack_plain
from dllama_zmq.bus.messages import ArrayHead, Frame, Weights
from dllama_zmq.formats import ModelFile
from dllama_zmq.sharding import Plan

PIECE_BYTES = 512 * 1024


class WeightStream:
    """What is still to be sent to `node`. `sent_bytes` of `total_bytes` are on their way."""

    def __init__(self, model: ModelFile, plan: Plan, node: int) -> None:
        self.total_bytes = plan.weight_bytes(node)
        self.sent_bytes = 0
        self._model = model
        self._pieces = _pieces(model, plan, node)

    def next_piece(self) -> tuple[Weights, list[Frame]] | None:
        """The next message and its frame, or None when all has been sent."""
        piece = next(self._pieces, None)
        if piece is None:
            return None
        name, offset, head, frame = piece
        self.sent_bytes += len(frame)
        if self.sent_bytes == self.total_bytes:
            self._model.forget_pages()  # what was read for the worker is not the root's to hold
        return Weights(name, offset, [head]), [frame]


def _pieces(model: ModelFile, plan: Plan, node: int) -> Iterator[tuple[str, int, ArrayHead, Frame]]:
    for tensor in plan.shard_tensors():
        rows, columns = plan.region(tensor, node)
        row_bytes = tensor.float_type.row_bytes(columns.stop - columns.start)
        rows_at_once = max(1, PIECE_BYTES // row_bytes)
        for row in range(rows.start, rows.stop, rows_at_once):
            part = model.read(tensor.name, slice(row, min(row + rows_at_once, rows.stop)), columns)
            data = np.ascontiguousarray(part.data).reshape(1, -1)  # a copy of a few rows, for a region may be columns
            for first in range(0, data.size, PIECE_BYTES):  # more than one only where a row is longer than a piece
                head, frame = pack_plain(data[:, first : first + PIECE_BYTES], "u8")
                yield tensor.name, (row - rows.start) * row_bytes + first, head, frame
