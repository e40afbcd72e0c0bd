"""The interface of model files of all formats: a spec, and any slice of any tensor. Knows no format."""

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
"""About as many bytes of a file stay in this process's memory while it is read from front to back."""


class ModelFile(ABC):
    """An open model. `read` gives each tensor in the type that `spec` names, whatever its type in the file.

    `tensors` are in the order of the model's table; `nbytes` is their total size as read. `notes` are warnings about
    the files, for the user.
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
        """A slice of a tensor: a read-only view of the file if its bytes need no conversion, else an array.

        A vector is one row. Column bounds must fall on whole blocks. Raises UsageError after `close`, FormatError for
        values that are infinite or NaN, which would make a model's answers nonsense.
        """
        matrix = self._read(name, rows, columns)
        if not matrix.is_finite:
            raise FormatError(
                f"{self._where(name)} has values that are infinite or NaN. "
                "The file is damaged; copy or download it again."
            )
        return matrix

    @abstractmethod
    def _read(self, name: str, rows: slice, columns: slice) -> BlockMatrix:
        """`read` without the check."""

    def _where(self, name: str) -> str:
        """The file, and the tensor's name in it, to begin an error with."""
        return f"{self.path}: tensor {name}"

    def in_file(self, name: str) -> tuple[str, int]:
        """The tensor's type in the file, by the format's name, and its bytes in the file."""
        tensor = self._by_name[name]
        return tensor.float_type.name, tensor.nbytes(self.spec)

    @abstractmethod
    def forget_pages(self) -> None:
        """Release the file's pages from this process's memory; reading maps them again."""

    @abstractmethod
    def close(self) -> None:
        """Close the file. Views of it stay valid."""

    def _before_reading(self, n_bytes: int) -> None:
        """Call before bytes are read once: releases the pages read before, once they are many."""
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
