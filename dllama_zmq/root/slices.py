"""The SHA-256 of every worker's slices, kept from an earlier start or computed by a thread in the background."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from dllama_zmq.bus.messages import Sha256
from dllama_zmq.errors import DllamaError
from dllama_zmq.formats import ModelFile
from dllama_zmq.formats.files import replace_file
from dllama_zmq.quants import U8
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import TensorSpec

logger = logging.getLogger(__name__)

PIECE_BYTES = 512 * 1024
_MAX_KEPT = 64
"""Files of hashes, one for each model and number of nodes: 40 kB for TinyLlama's 200 tensors on 4 nodes."""
_DECODER = msgspec.json.Decoder(list[list[Sha256]])


class Slices:
    """The hashes of the slices of each worker under `plan`, in file order.

    folder: keeps them for the next start; None: they are not kept. `close` ends the thread.
    """

    def __init__(self, model: ModelFile, plan: Plan, folder: Path | None = None) -> None:
        self._model, self._plan = model, plan
        self._tensors = plan.shard_tensors()
        self._file = None if folder is None else _file_of(folder, model, plan)
        self._hashes: list[list[str]] = self._kept() or [[] for _ in range(plan.n_nodes)]
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._are_kept = bool(self._hashes[-1])
        self._thread = threading.Thread(target=self._run, name="hashes", daemon=True)
        if plan.n_nodes > 1 and not self._are_kept:
            self._thread.start()

    def known(self, node: int) -> list[str]:
        """The hashes of a node's slices computed so far, in order. Raises errors of reading the model."""
        if self._error is not None:
            raise self._error
        return self._hashes[node]

    def distrust(self) -> None:
        """A worker found bytes that do not match their hash: compute the kept hashes again."""
        if not self._are_kept or self._file is None:
            return
        logger.warning("%s is wrong for %s; its hashes are computed again", self._file, self._model.path)
        self._hashes, self._are_kept = [[] for _ in range(self._plan.n_nodes)], False
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        try:
            n_bytes = self._hash_all()
        except Exception as error:  # raised by `known`
            self._error = error
            return
        if n_bytes is None:
            return
        seconds = time.monotonic() - start
        logger.info("hashed slices=%d bytes=%d seconds=%.1f", sum(map(len, self._hashes)), n_bytes, seconds)
        self._model.forget_pages()
        self._keep()

    def _hash_all(self) -> int | None:
        """Hash every slice, tensor by tensor, in the order of sending. Returns the bytes read; None if closed."""
        n_bytes = 0
        for tensor in self._tensors:
            by_region: dict[tuple[int, ...], str] = {}  # norms: several nodes share a region
            for node in range(1, self._plan.n_nodes):
                rows, columns = self._plan.region(tensor, node)
                region = (rows.start, rows.stop, columns.start, columns.stop)
                if region not in by_region:
                    digest = hashlib.sha256()
                    for _, piece in pieces(self._model, self._plan, node, tensor):
                        if self._closed.is_set():
                            return None
                        digest.update(piece.data)
                        n_bytes += piece.size
                    by_region[region] = digest.hexdigest()
                self._hashes[node].append(by_region[region])
        return n_bytes

    def _kept(self) -> list[list[str]] | None:
        """The hashes of an earlier start; None if there are none, or they do not fit."""
        if self._file is None:
            return None
        try:
            found = _DECODER.decode(self._file.read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        lengths = [0, *[len(self._tensors)] * (self._plan.n_nodes - 1)]
        return found if [len(hashes) for hashes in found] == lengths else None

    def _keep(self) -> None:
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replace_file(self._file) as file:
                file.write(msgspec.json.encode(self._hashes))
            kept = sorted(self._file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-_MAX_KEPT]:
                path.unlink(missing_ok=True)
        except (OSError, DllamaError) as error:
            logger.warning("the hashes of the weights cannot be kept, so the next start computes them again: %s", error)


def pieces(
    model: ModelFile, plan: Plan, node: int, tensor: TensorSpec, first_byte: int = 0
) -> Iterator[tuple[int, U8]]:
    """Cut a node's slice of `tensor` from `first_byte` on: pairs of an offset and at most PIECE_BYTES bytes (1, n)."""
    rows, columns = plan.region(tensor, node)
    blocks = tensor.float_type.whole_blocks(columns)
    row_bytes = tensor.float_type.row_bytes(blocks.stop - blocks.start)
    rows_at_once = max(1, PIECE_BYTES // row_bytes)
    n_whole, skipped = divmod(first_byte, row_bytes)
    for row in range(rows.start + n_whole, rows.stop, rows_at_once):
        part = model.read(tensor.name, slice(row, min(row + rows_at_once, rows.stop)), columns)
        data = np.ascontiguousarray(part.data).reshape(1, -1)  # a copy of a few rows, for a region may be columns
        for first in range(skipped, data.size, PIECE_BYTES):  # more than one only if a row is longer than a piece
            yield (row - rows.start) * row_bytes + first, data[:, first : first + PIECE_BYTES]
        skipped = 0


def _file_of(folder: Path, model: ModelFile, plan: Plan) -> Path | None:
    """The file for the hashes of this model over this number of nodes. A changed model gets another file.

    None for a model without files.
    """
    content = f"{model.identity} {plan.n_nodes}".encode()
    return folder / f"{hashlib.sha256(content).hexdigest()}.json" if model.identity else None
