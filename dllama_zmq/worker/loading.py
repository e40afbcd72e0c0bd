"""A node's slices: from its own copy of the model, from the cache, or piece by piece from the root. Knows no socket.

One thread receives from the root and calls `offered`, `take` and `to_ask`. Another builds the model and calls `slice`
for one tensor after another, so that repacking begins with the first slice.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from dllama_zmq.bus.messages import Frame, Need, Offer, Weights
from dllama_zmq.bus.messages import Plan as PlanMessage
from dllama_zmq.errors import ProtocolError
from dllama_zmq.kept_files import KeptFiles, Part
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.quants import U8, BlockMatrix, Later
from dllama_zmq.sharding import Plan
from dllama_zmq.worker.own_model import OwnModel

_MAX_ASKED = 1000  # in one message


class Loading:
    """The slices of `node` under `plan`. Call `close` after the last slice, or when loading ends early."""

    def __init__(self, plan: Plan, node: int, own: OwnModel | None = None, cache: KeptFiles | None = None) -> None:
        self._plan, self._node = plan, node
        self._own, self._copy, self._cache = own, own, cache  # own: None once it has been found to differ
        self._agrees = own is None  # own has been compared with a first hash
        self._changed = threading.Condition()
        self._tensors = {tensor.name: tensor for tensor in plan.shard_tensors()}
        self._to_offer = deque(self._tensors)
        self._hashes: dict[str, str] = {}  # of the offered slices
        self._unread = set(self._tensors)  # the slices that nobody has read yet
        self._to_ask: deque[tuple[str, int]] = deque()
        self._arriving: dict[str, _Arriving] = {}  # the slices asked for, in the order in which they arrive
        self._arrived: dict[str, U8] = {}
        self._end: BaseException | None = None
        self.received_bytes = 0
        self._read_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of weights in this process's memory, repacked or not."""
        return self.received_bytes + self._read_bytes

    def offered(self, message: Offer) -> None:
        """Decide which offered slices to ask for. Raises ProtocolError unless they are the next slices."""
        with self._changed:
            names = [name for name, _ in message.slices]
            if names != [self._to_offer.popleft() for _ in names[: len(self._to_offer)]]:
                raise ProtocolError(f"an offer of {names[0]} and {len(names) - 1} more, which are not the next slices")
            self._hashes |= dict(message.slices)
            if not self._agrees:  # a wrong file shows before anything waits for its slices
                self._agrees = True
                if self._own is not None and self._own.read(self._tensors[names[0]], self._hashes[names[0]]) is None:
                    self._own = None
            self._ask_for_missing(names)
            self._changed.notify_all()

    def take(self, message: Weights, frames: list[Frame]) -> None:
        """Store one piece. Raises ProtocolError unless it is the next piece that was asked for."""
        with self._changed:
            name = next(iter(self._arriving), None)
            if name is None:
                raise ProtocolError(f"weights of {message.tensor}, which were not asked for")
            arriving = self._arriving[name]
        if (message.tensor, message.offset) != (name, arriving.filled):
            raise ProtocolError(
                f"weights of {message.tensor} from byte {message.offset}; expected {name} from byte {arriving.filled}"
            )
        if len(message.arrays) != 1 or message.arrays[0].type != "u8" or not frames[0]:
            raise ProtocolError(f"weights of {message.tensor} that are not one array of bytes")
        data = arriving.add(np.frombuffer(frames[0], np.uint8))
        self.received_bytes += len(frames[0])
        if data is not None:
            with self._changed:
                del self._arriving[name]
                self._arrived[name] = data
                self._changed.notify_all()

    def to_ask(self) -> Need | None:
        """The slices to ask the root for now."""
        with self._changed:
            asks = [self._to_ask.popleft() for _ in range(min(_MAX_ASKED, len(self._to_ask)))]
        return Need(asks) if asks else None

    def end(self, error: BaseException) -> None:
        """End the loading: a call of `slice` that waits raises `error`."""
        with self._changed:
            self._end = error
            self._changed.notify_all()

    def slice(self, name: str) -> BlockMatrix:
        """Wait until the slice of a tensor has been offered; its bytes are waited for and read when they are needed.

        Raises the error given to `end`, now or then.
        """
        self._wait(lambda: name in self._hashes)
        tensor = self._tensors[name]
        rows, columns = self._plan.region(tensor, self._node)
        n_rows, size = rows.stop - rows.start, self._plan.region_bytes(tensor, self._node)
        content = Later((n_rows, size // n_rows), lambda: self._bytes(name).reshape(n_rows, -1))
        matrix = BlockMatrix.of_columns(content, tensor.float_type, columns)
        return replace(matrix, source=self._hashes[name])

    def _bytes(self, name: str) -> U8:
        """Wait for the bytes of a slice, and return them once."""
        while True:
            self._wait(lambda: name not in self._arriving)
            with self._changed:
                data, own = self._arrived.pop(name, None), self._own
            if data is None:
                data = self._read(name, own)
                if data is None:
                    continue
                self._read_bytes += data.nbytes
            with self._changed:
                self._unread.discard(name)
            return data

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or until())
            if self._end is not None:
                raise self._end

    def close(self) -> None:
        """Close the files. The received part of an unfinished slice stays in the cache."""
        for arriving in self._arriving.values():
            arriving.close()
        if self._copy is not None:
            self._copy.close()

    def _read(self, name: str, own: OwnModel | None) -> U8 | None:
        """A slice from the own model or the cache; None if the root must send it after all."""
        tensor, sha256 = self._tensors[name], self._hashes[name]
        if own is not None:
            data = own.read(tensor, sha256)
            if data is None:
                with self._changed:
                    self._own = None
                    self._ask_for_missing(n for n in self._hashes if n in self._unread and n not in self._arrived)
            return data
        size = self._plan.region_bytes(tensor, self._node)
        data = self._cache.read(sha256, size) if self._cache is not None else None
        if data is None:
            with self._changed:
                self._ask(name)
        return data

    def _ask_for_missing(self, names: Iterable[str]) -> None:
        if self._own is not None:
            return
        for name in list(names):
            size = self._plan.region_bytes(self._tensors[name], self._node)
            if self._cache is None or not self._cache.has(self._hashes[name], size):
                self._ask(name)

    def _ask(self, name: str) -> None:
        size = self._plan.region_bytes(self._tensors[name], self._node)
        arriving = self._arriving[name] = _Arriving(name, self._hashes[name], size, self._cache)
        self._to_ask.append((name, arriving.filled))


class _Arriving:
    """One slice that the root sends; `filled` of its bytes are here. The cache stores them, and may have had the first
    ones."""

    def __init__(self, name: str, sha256: str, size: int, cache: KeptFiles | None) -> None:
        self._name, self._sha256, self._size, self._cache = name, sha256, size, cache
        self._digest = hashlib.sha256()
        self._data: U8 | None = None
        self._part: Part | None = None if cache is None else cache.part(sha256, size, begin=False)
        self.filled = 0
        if self._part is not None:
            self._data = np.empty(size, np.uint8)
            self.filled = self._part.read(self._data)
            self._digest.update(self._data[: self.filled].data)

    def add(self, piece: U8) -> U8 | None:
        """Store the next bytes. Returns the slice when it is complete. Raises ProtocolError if its hash is wrong."""
        end = self.filled + piece.size
        if end > self._size:
            raise ProtocolError(f"{end} bytes of {self._name}; this node's region has {self._size}")
        if self._data is None:
            self._data = np.empty(self._size, np.uint8)
            self._part = None if self._cache is None else self._cache.part(self._sha256, self._size, begin=True)
        self._data[self.filled : end] = piece
        self.filled = end
        self._digest.update(piece.data)
        if self._part is not None and not self._part.append(piece):
            self._part = None
        if end < self._size:
            return None
        sound = self._digest.hexdigest() == self._sha256
        if self._part is not None:
            if sound:
                self._part.keep()
            else:
                self._part.discard()
            self._part = None
        if not sound:
            raise ProtocolError(f"weights of {self._name} whose SHA-256 is not the one that was offered")
        return self._data

    def close(self) -> None:
        if self._part is not None:
            self._part.close()


def check_room(plan: Plan, node: int, order: PlanMessage) -> None:
    """Raise an error, before anything is allocated, if this machine could never hold the slices or the KV cache."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kv_bytes = plan.kv_bytes(node, order.pages * KV_PAGE, order.kv)
    for what, nbytes in (("weights", plan.weight_bytes(node)), ("keys and values", kv_bytes)):
        if nbytes > machine:
            raise ProtocolError(
                f"a plan with {nbytes} bytes of {what}; this machine has {machine}: "
                "use more nodes, or a smaller max_seq_len"
            )
