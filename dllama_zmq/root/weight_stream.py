"""The weights for a loading worker: offer its slices, then stream those that it needs from the mapped file, one piece
for each credit and without a copy of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from dllama_zmq.bus.arrays import encode_plain
from dllama_zmq.bus.messages import Frame, Message, Need, Offer, Weights
from dllama_zmq.errors import ProtocolError
from dllama_zmq.formats import ModelFile
from dllama_zmq.quants import U8
from dllama_zmq.root.slices import Slices, pieces
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import TensorSpec

_MAX_PIECES = 16
_MAX_OFFERED = 1000
"""In one message: 132 kB at most."""


class WeightStream:
    """The offers and pieces that `node` has yet to get.

    total_bytes: all its slices. kept_bytes: offered, not needed. sent_bytes: sent, perhaps not received yet.
    """

    def __init__(self, model: ModelFile, plan: Plan, node: int, slices: Slices) -> None:
        self.total_bytes = plan.weight_bytes(node)
        self.sent_bytes = 0
        self._offered_bytes = self._needed_bytes = 0
        self._model, self._plan, self._node, self._slices = model, plan, node, slices
        self._tensors = plan.shard_tensors()
        self._n_offered = 0
        self._offered: dict[str, TensorSpec] = {}  # and not needed
        self._due: deque[tuple[str, Iterator[tuple[int, U8]]]] = deque()
        self._credit: int | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of slices that the worker had already."""
        return self._offered_bytes - self._needed_bytes

    @property
    def complete(self) -> bool:
        """Whether all slices were offered, and all needed ones sent."""
        return self._offered_bytes == self.total_bytes and self.sent_bytes == self._needed_bytes

    def grant(self, n_pieces: int) -> None:
        """The worker has room for this many more pieces."""
        self._credit = min(_MAX_PIECES, (self._credit or 0) + n_pieces)

    def need(self, message: Need) -> None:
        """The worker lacks these slices. Raises ProtocolError unless each was offered, and is needed once."""
        for name, first_byte in message.slices:
            tensor = self._offered.pop(name, None)
            if tensor is None:
                raise ProtocolError(f"{name}, which was not offered, or is asked for again")
            left_bytes = self._plan.region_bytes(tensor, self._node) - first_byte
            if left_bytes <= 0:
                raise ProtocolError(f"{name} from byte {first_byte}, beyond its end")
            self._needed_bytes += left_bytes
            self._due.append((name, pieces(self._model, self._plan, self._node, tensor, first_byte)))

    def distrust(self) -> None:
        """The worker could not load: hashes of an earlier start may be wrong."""
        self._slices.distrust()

    def next_message(self) -> tuple[Message, list[Frame]] | None:
        """The next message and its frames; None if there is nothing to send or no credit. Raises errors of reading."""
        if self._credit is None:  # before that, the worker may join again
            return None
        return self._next_offer() or self._next_piece()

    def _next_offer(self) -> tuple[Message, list[Frame]] | None:
        hashes = self._slices.known(self._node)[self._n_offered : self._n_offered + _MAX_OFFERED]
        if not hashes:
            return None
        tensors = self._tensors[self._n_offered : self._n_offered + len(hashes)]
        self._n_offered += len(hashes)
        self._offered |= {tensor.name: tensor for tensor in tensors}
        self._offered_bytes += sum(self._plan.region_bytes(tensor, self._node) for tensor in tensors)
        return Offer([(tensor.name, sha256) for tensor, sha256 in zip(tensors, hashes, strict=True)]), []

    def _next_piece(self) -> tuple[Message, list[Frame]] | None:
        while self._credit and self._due:
            name, left = self._due[0]
            piece = next(left, None)
            if piece is None:
                self._due.popleft()
                continue
            self._credit -= 1
            head, frame = encode_plain(piece[1], "u8")
            self.sent_bytes += len(frame)
            if self.sent_bytes == self._needed_bytes:
                self._model.forget_pages()  # the root need not keep pages that it read for the worker
            return Weights(name, piece[0], [head]), [frame]
        return None
