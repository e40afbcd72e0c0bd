"""GGUF files for tests, written from ggml's docs/gguf.md alone: any metadata, any tensors, sound or not."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dllama_zmq.formats import open_m, read_t
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import ModelSpec

TYPE_IDS = {"F32": 0, "F16": 1, "Q40": 2, "Q41": 3, "Q50": 6, "Q51": 7, "Q80": 8, "Q2_K": 10, "Q4_K": 12, "Q5_K": 13,
            "Q6_K": 14, "BF16": 30, "Q3_K": 11, "IQ2_XXS": 16, "IQ4_NL": 20, "IQ4_XS": 23, "TQ1_0": 34, "TQ2_0": 35,
            "MXFP4": 39}  # fmt: skip
_LETTERS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
            "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Typed:
    """A number, or a list of numbers, of a metadata type by its name in `_LETTERS`."""

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class FileTensor:
    """`axes` as in the file, the fastest first; `offset` where it is not the next free place."""

    name: str
    axes: Sequence[int]
    type_id: int
    data: bytes
    offset: int | None = None


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def packed_value(value: Any) -> bytes:
    """A metadata value with its type: bool, int (u32), float (f32), text, a list of texts, or `Typed`."""
    if isinstance(value, str | bytes):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    if not isinstance(value, Typed):
        value = Typed("bool" if isinstance(value, bool) else "u32" if isinstance(value, int) else "f32", value)
    number, letter = _LETTERS[value.kind]
    if isinstance(value.value, list):
        items = struct.pack(f"<{len(value.value)}{letter}", *value.value)
        return struct.pack("<IIQ", 9, number, len(value.value)) + items
    return struct.pack("<I", number) + struct.pack(f"<{letter}", value.value)


def gguf_bytes(
    metadata: Mapping[str, Any], tensors: Iterable[FileTensor] = (), version: int = 3, alignment: int = 32
) -> bytes:
    """A whole file."""
    tensors = list(tensors)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + packed_value(value) for key, value in metadata.items())
    data = bytearray()
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        head += (
            text(tensor.name) + struct.pack("<I", len(tensor.axes)) + struct.pack(f"<{len(tensor.axes)}Q", *tensor.axes)
        )
        head += struct.pack("<IQ", tensor.type_id, offset)
        data += tensor.data
        data += bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + bytes(data)


def llama_metadata(spec: ModelSpec, arch: str = "llama") -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes of such a model, without a tokenizer."""
    return {
        "general.architecture": arch,
        "general.name": "tiny",
        f"{arch}.block_count": spec.n_layers,
        f"{arch}.context_length": spec.seq_len,
        f"{arch}.embedding_length": spec.dim,
        f"{arch}.feed_forward_length": spec.hidden_dim,
        f"{arch}.attention.head_count": spec.n_heads,
        f"{arch}.attention.head_count_kv": spec.n_kv_heads,
        f"{arch}.attention.key_length": spec.head_dim,
        f"{arch}.attention.value_length": spec.head_dim,
        f"{arch}.rope.dimension_count": spec.head_dim,
        f"{arch}.rope.freq_base": float(spec.rope.theta),
        f"{arch}.attention.layer_norm_rms_epsilon": float(spec.norm_eps),
    }


_OF_LAYER = {
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "ffn.gate": "ffn_gate",
    "ffn.down": "ffn_down",
    "ffn.up": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


def llama_name(name: str) -> str:
    """The GGUF name of a Llama's tensor."""
    if name.startswith("layers."):
        _, i, rest = name.split(".", 2)
        return f"blk.{i}.{_OF_LAYER[rest]}.weight"
    return {"embedding": "token_embd", "final_norm": "output_norm", "head": "output"}[name] + ".weight"


def file_tensor(name: str, matrix: BlockMatrix) -> FileTensor:
    """A tensor of one of our types, a vector where it is one row."""
    axes = [matrix.columns, matrix.rows] if matrix.rows > 1 else [matrix.columns]
    return FileTensor(name, axes, TYPE_IDS[matrix.float_type.name], np.ascontiguousarray(matrix.data).tobytes())


def write_llama(path: Path, spec: ModelSpec, tensors: Iterable[tuple[str, BlockMatrix]], **changes: Any) -> Path:
    """A GGUF file of the very bytes of `tensors`, which have our names. `changes`: other metadata, dots as two `_`."""
    more = {f"llama.{key.replace('__', '.')}": value for key, value in changes.items()}
    path.write_bytes(gguf_bytes(llama_metadata(spec) | more, [file_tensor(llama_name(name), m) for name, m in tensors]))
    return path


def gguf_of(model: Path, words: Path) -> bytes:
    """The model and its vocabulary in one file, as llama.cpp's converter writes a SentencePiece model."""
    data = read_t(words)
    tokens, kinds = [], []
    for token, piece in enumerate(data.pieces):
        if 3 <= token < 259:
            tokens.append(f"<0x{piece[0]:02X}>")
            kinds.append(6)
        else:
            tokens.append(piece.decode().replace(" ", "▁"))
            kinds.append(2 if piece == b"<unk>" else 3 if token in (data.bos_id, *data.eos_ids) else 1)
    with open_m(model) as file:
        vocabulary = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": Typed("f32", list(data.scores)),
            "tokenizer.ggml.token_type": Typed("i32", kinds),
            "tokenizer.ggml.bos_token_id": data.bos_id,
            "tokenizer.ggml.eos_token_id": data.eos_ids[0],
        }
        tensors = [file_tensor(llama_name(tensor.name), file.read(tensor.name)) for tensor in file.tensors]
        return gguf_bytes(llama_metadata(file.spec) | vocabulary, tensors)
