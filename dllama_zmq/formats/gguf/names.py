"""GGUF's names of tensors, and the locations of a model's tensors. See FORMATS.md §4. Knows no bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.gguf.head import StoredType, Tensor
from dllama_zmq.spec import FloatType

_MODEL = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
_LAYER = {
    "attention.q": "attn_q.weight",
    "attention.k": "attn_k.weight",
    "attention.v": "attn_v.weight",
    "attention.o": "attn_output.weight",
    "attention.q_bias": "attn_q.bias",
    "attention.k_bias": "attn_k.bias",
    "attention.v_bias": "attn_v.bias",
    "attention.q_norm": "attn_q_norm.weight",
    "attention.k_norm": "attn_k_norm.weight",
    "attention_norm": "attn_norm.weight",
    "ffn.gate": "ffn_gate.weight",
    "ffn.down": "ffn_down.weight",
    "ffn.up": "ffn_up.weight",
    "ffn_norm": "ffn_norm.weight",
    "router": "ffn_gate_inp.weight",
}
_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"experts\.(\d+)\.(gate|down|up)")
ROPE_FACTORS = "rope_freqs.weight"
_UNREAD = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight|rope_factors_(long|short)\.weight")
"""Tensors that the spec has already, or that are computed."""


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """A model's tensor: `n_rows` rows from `first_row` of `tensor`, which is in the file number `part`."""

    part: int
    tensor: Tensor
    first_row: int
    n_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.n_rows, self.tensor.shape[-1]

    @property
    def is_vector(self) -> bool:
        return len(self.tensor.shape) == 1


def gguf_name(name: str) -> str:
    """The GGUF name of a model's tensor. The experts of a layer share one tensor."""
    if name in _MODEL:
        return _MODEL[name]
    layer = _IN_LAYER.fullmatch(name)
    if layer is None:
        raise KeyError(name)
    i, rest = layer.groups()
    expert = _EXPERT.fullmatch(rest)
    return f"blk.{i}.ffn_{expert[2]}_exps.weight" if expert else f"blk.{i}.{_LAYER[rest]}"


class Directory:
    """The tensors of all parts of a model, by name. Raises FormatError if two parts have the same one."""

    def __init__(self, where: str, parts: Iterable[Mapping[str, Tensor]]) -> None:
        self._where = where
        self._tensors: dict[str, tuple[int, Tensor]] = {}
        for part, tensors in enumerate(parts):
            for name, tensor in tensors.items():
                if name in self._tensors:
                    raise FormatError(
                        f"{where}: tensor {name} is in part {self._tensors[name][0] + 1} and in part {part + 1}; "
                        "expected each name once. Get all parts of the same model."
                    )
                self._tensors[name] = part, tensor

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def has_biases(self) -> bool:
        """Whether any layer has a bias."""
        return any(name.endswith(".bias") for name in self._tensors)

    def get(self, gguf_name: str) -> TensorLocation | None:
        """The whole tensor with this GGUF name, or None."""
        part, tensor = self._tensors.get(gguf_name, (0, None))
        return None if tensor is None else TensorLocation(part, tensor, 0, tensor.n_rows)

    def find(self, name: str) -> TensorLocation:
        """The location of a model's tensor. Raises FormatError if it is missing."""
        wanted = gguf_name(name)
        expert = _EXPERT.search(name)
        location = self.get(wanted)
        if location is not None and expert is not None:
            number, (n_experts, rows, _) = int(expert[1]), (1, 1, *location.tensor.shape)[-3:]
            if len(location.tensor.shape) > 3 or number >= n_experts:
                raise FormatError(
                    f"{self._where}: {wanted} has the shape {list(location.tensor.shape)}, but there is an expert "
                    f"{number}; expected experts, rows, columns. The file is damaged."
                )
            return TensorLocation(location.part, location.tensor, number * rows, rows)
        if location is None and expert is not None:  # Mixtral's files until April 2024
            wanted = wanted.replace("_exps", f".{expert[1]}")
            location = self.get(wanted)
        if location is None and name == "head":  # tied to the embedding
            wanted = _MODEL["embedding"]
            location = self.get(wanted)
        if location is None:
            raise FormatError(
                f"{self._where}: the tensor {wanted}, which the model needs, is missing. Convert or download it again."
            )
        if len(location.tensor.shape) > 2:
            raise FormatError(
                f"{self._where}: {wanted} has the shape {list(location.tensor.shape)}; expected rows and columns."
            )
        return location

    def check_all_used(self, locations: Iterable[TensorLocation]) -> None:
        """Raise UnsupportedModel for a tensor that the model's code does not use: its answers would be wrong."""
        used = {location.tensor.name for location in locations}
        for name in self._tensors:
            if name not in used and not _UNREAD.fullmatch(name):
                raise UnsupportedModel(
                    f"{self._where}: this version does not use the tensor {name}, so its answers would be wrong. "
                    "Get a file of the plain model."
                )

    def common_type(self, default: StoredType) -> StoredType:
        """The type of most matrices in the layers."""
        kinds = [t.stored for _, t in self._tensors.values() if len(t.shape) > 1 and t.name.startswith("blk.")]
        return max(set(kinds), key=lambda kind: (kinds.count(kind), kind.name), default=default)


def type_as_read(stored: StoredType, exactly: bool) -> FloatType:
    """The type in which a tensor is read. A type without kernels is converted, to F32 with `exactly`."""
    if isinstance(stored, FloatType):
        return stored
    return FloatType.F32 if exactly else stored.read_as


def half_layout_rows(rows: range, head_dim: int) -> list[int]:
    """The rows in a file with interleaved pairs that are `rows` of q or k in half layout.

    RoPE rotates rows j and j + head_dim / 2 of a head together; in the file they are rows 2j and 2j + 1.
    """
    half = head_dim // 2
    return [row - row % head_dim + row % head_dim % half * 2 + row % head_dim // half for row in rows]
