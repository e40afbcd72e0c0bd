"""What every model file offers, whatever its format: a spec, and any part of any tensor. Knows no format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from dllama_zmq.errors import FormatError
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import ModelSpec, TensorSpec

ALL = slice(None)
_FORGET_BYTES = 1 << 26
"""Bytes of a file that may lie in this process's memory, more or less, while it is read from front to back."""


class ModelFile(ABC):
    """An open model. `spec` says of which type each tensor is, and `read` gives it in that type, whatever the file has.

    `tensors` are in the order of the model's table; `nbytes` is what they take together, as read. `notes` are sentences
    for the user about what is odd in the files and was settled here.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self.path = path
        self.spec = spec
        self.tensors: list[TensorSpec] = tensor_table(spec)
        self.nbytes = sum(tensor.nbytes(spec) for tensor in self.tensors)
        self._by_name = {tensor.name: tensor for tensor in self.tensors}
        self.notes: list[str] = []
        self._read_bytes = 0

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> BlockMatrix:
        """A part of a tensor of the table: a read-only view of the file where it has just those bytes, else made anew.

        A vector is one row. Column bounds fall on whole blocks. Raises UsageError after `close`, FormatError where a
        value is infinite or no number: a model would answer with nonsense.
        """
        part = self._part(name, rows, columns)
        if not part.is_finite:
            raise FormatError(
                f"{self._where(name)} has values that are infinite or no numbers. "
                "The file is damaged; copy or download it again."
            )
        return part

    @abstractmethod
    def _part(self, name: str, rows: slice, columns: slice) -> BlockMatrix:
        """What `read` gives, unchecked."""

    def _where(self, name: str) -> str:
        """The file and the name that a tensor has there, to begin an error with."""
        return f"{self.path}: tensor {name}"

    def in_file(self, name: str) -> tuple[str, int]:
        """The type that the file has a tensor in, by its own name, and the bytes that it takes there."""
        tensor = self._by_name[name]
        return tensor.float_type.name, tensor.nbytes(self.spec)

    @abstractmethod
    def forget_pages(self) -> None:
        """Take the file's pages out of this process's memory; they come back when they are read again."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Views of it that still live keep what they show."""

    def _will_read(self, n_bytes: int) -> None:
        """Say before bytes are read that are not read again: what has been read is let go of when it is much."""
        if self._read_bytes > _FORGET_BYTES:
            self.forget_pages()
            self._read_bytes = 0
        self._read_bytes += n_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
