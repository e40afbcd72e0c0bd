"""Where a model's tensors are in GGUF files. See FORMATS.md §4."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.gguf.container import Container, Tensor
from dllama_zmq.formats.stored import Extent, RowOrder, StoredTensor
from dllama_zmq.formats.tensor_names import gguf_name
from dllama_zmq.quants import F32
from dllama_zmq.spec import FloatType

_EXPERT = re.compile(r"experts\.(\d+)\.(gate|down|up)")
_ROPE_FACTORS = "rope_freqs.weight"
_UNREAD = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight|rope_factors_(long|short)\.weight")
"""Tensors whose values the spec has already, or that are computed."""


class Directory:
    """The tensors of all files of a model, by name.

    Raises FormatError if two files have the same one, and as `Container.placed`.
    """

    def __init__(self, where: str, files: Iterable[Container]) -> None:
        self._where = where
        self._tensors: dict[str, tuple[Container, Tensor]] = {}
        self._used: set[str] = set()
        for file in files:
            for name, tensor in file.placed().items():
                if name in self._tensors:
                    raise FormatError(
                        f"{where}: tensor {name} is in {self._tensors[name][0].path.name} and in {file.path.name}; "
                        "expected each name once. Get all parts of the same model."
                    )
                self._tensors[name] = file, tensor

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def has_biases(self) -> bool:
        """Whether any layer has a bias."""
        return any(name.endswith(".bias") for name in self._tensors)

    def find(self, name: str, order: RowOrder | None = None) -> StoredTensor:
        """A model's tensor. Raises FormatError if it is missing.

        order: of its rows in the file, see `StoredTensor`.
        """
        wanted = gguf_name(name)
        expert = _EXPERT.search(name)
        if wanted in self._tensors and expert is not None:
            tensor = self._tensors[wanted][1]
            number, (n_experts, rows, _) = int(expert[1]), (1, 1, *tensor.shape)[-3:]
            if len(tensor.shape) > 3 or number >= n_experts:
                raise FormatError(
                    f"{self._where}: {wanted} has the shape {list(tensor.shape)}, but there is an expert "
                    f"{number}; expected experts, rows, columns. The file is damaged."
                )
            return self._stored(wanted, number * rows, rows)
        if wanted not in self._tensors and expert is not None:  # Mixtral's files until April 2024
            wanted = wanted.replace("_exps", f".{expert[1]}")
        if wanted not in self._tensors and name == "head":  # tied to the embedding
            wanted = gguf_name("embedding")
        if wanted not in self._tensors:
            raise FormatError(
                f"{self._where}: the tensor {wanted}, which the model needs, is missing. Convert or download it again."
            )
        tensor = self._tensors[wanted][1]
        if len(tensor.shape) > 2:
            raise FormatError(f"{self._where}: {wanted} has the shape {list(tensor.shape)}; expected rows and columns.")
        return self._stored(wanted, 0, tensor.n_rows, order)

    def _stored(self, name: str, first_row: int, rows: int, order: RowOrder | None = None) -> StoredTensor:
        self._used.add(name)
        file, tensor = self._tensors[name]
        offset = tensor.offset + first_row * tensor.row_bytes
        extent = Extent(file.pages, offset, rows, tensor.shape[-1], tensor.stored)
        return StoredTensor(f"{file.path}: tensor {name}", (extent,), order=order)

    def rope_factors(self) -> F32 | None:
        """The values of the tensor rope_freqs, if it exists. Raises FormatError if it is not a vector of F32."""
        file, tensor = self._tensors.get(_ROPE_FACTORS, (None, None))
        if file is None or tensor is None:
            return None
        if tensor.stored is not FloatType.F32 or len(tensor.shape) != 1 or tensor.shape[0] > 1 << 14:
            raise FormatError(
                f"{self._where}: {_ROPE_FACTORS} is {list(tensor.shape)}, {tensor.stored.name}; expected F32."
            )
        values: F32 = file.pages.view(tensor.offset, tensor.nbytes).view("<f4").copy()
        return values

    def check_all_used(self) -> None:
        """Raise UnsupportedModel for a tensor that the model does not use: the answers would be wrong."""
        for name in self._tensors:
            if name not in self._used and not _UNREAD.fullmatch(name):
                raise UnsupportedModel(
                    f"{self._where}: this version does not use the tensor {name}, so its answers would be wrong. "
                    "Get a file of the plain model."
                )
