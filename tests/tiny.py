"""Small models and vocabularies for tests: seeded, valid, and written as real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from k_quantizers import quantized
from msgspec.structs import replace

from dllama_zmq.formats import ModelFile, TokenizerData, open_m, write_m, write_t
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec

TINY = ModelSpec(
    arch="llama",
    dim=64,
    hidden_dim=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    vocab_size=288,
    seq_len=64,
    weight_type=FloatType.F32,
)
_WORDS = [" the", " a", " once", " upon", " time", "ing", "ed", " cat", " dog", " and", " was", " he", " she", " sun"]


def tiny_spec(**overrides: Any) -> ModelSpec:
    """TINY with some numbers changed. `head_dim` follows `dim` and `n_heads` unless it is given."""
    spec = replace(TINY, **overrides)
    if "head_dim" not in overrides:
        spec = replace(spec, head_dim=spec.dim // spec.n_heads)
    spec.check()
    return spec


def tiny_tensors(spec: ModelSpec, seed: int = 0) -> Iterator[tuple[str, BlockMatrix]]:
    """Every tensor of `spec` in file order: weights of about unit gain, norms near 1."""
    rng = np.random.default_rng(seed)
    for tensor in tensor_table(spec):
        rows, columns = tensor.shape(spec)
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        if tensor.name.endswith("norm"):
            values = np.float32(1) + np.float32(0.1) * values
        elif tensor.name != "embedding":
            values *= np.float32(columns**-0.5)
        yield tensor.name, quantized(values, tensor.float_type)


def write_tiny_model(path: Path, spec: ModelSpec = TINY, seed: int = 0) -> ModelFile:
    """Write a seeded random model of `spec` to `path` and open it."""
    write_m(path, spec, tiny_tensors(spec, seed))
    return open_m(path)


def write_tiny_pair(folder: Path, spec: ModelSpec = TINY) -> ModelFile:
    """Write a random model of `spec` as tiny.m and a vocabulary for it as tiny.t, and open the model."""
    write_t(folder / "tiny.t", tiny_tokenizer_data(spec.vocab_size))
    return write_tiny_model(folder / "tiny.m", spec)


def tiny_tokenizer_data(vocab_size: int = TINY.vocab_size) -> TokenizerData:
    """A valid SentencePiece-like vocabulary: <unk>, <s>, </s>, the 256 bytes, then spaced letters and short words.

    `vocab_size` is at least 260. Every text can be encoded: what has no piece falls back to bytes.
    """
    if vocab_size < 260:
        raise ValueError(f"vocab_size is {vocab_size}; <unk>, <s>, </s>, the 256 bytes and a space are 260 tokens")
    pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([value]) for value in range(256))]
    letters = [" ", *"etaoinshrdlucmfwypvbgkjqxz.,"]
    merges = [word[:n] for word in _WORDS for n in range(2, len(word) + 1)]
    fillers = [f" {a}{b}" for a in "bcdfghjklmnpqrstvwxyz" for b in "aeiou"]
    pieces += [text.encode() for text in dict.fromkeys([*letters, *merges, *fillers])]
    pieces += [f"<extra {i}>".encode() for i in range(vocab_size - len(pieces))]
    pieces = pieces[:vocab_size]
    scores = [0.0] * 259 + [-float(i) for i in range(vocab_size - 259)]
    return TokenizerData(pieces, scores, bos_id=1, eos_ids=(2,), add_bos=True, source="tiny tokenizer")
