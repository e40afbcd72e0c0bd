"""Random tiny models of every architecture, drawn alike wherever they are needed: golden files hold no weights.

The weights are small whole numbers times a power of two, so that float16 holds them exactly. Shared by the tests and by
golden/make_arch_goldens.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec, Rope, RopeScaling

N_TOKENS = 150  # more than one chunk of a prompt, and more than any window here
ROWS = [0, 12, 63, 64, 100, 127, 128, 149]
"""The tokens whose logits a golden file keeps."""

_HALF = Rope(layout="half")
BASE = ModelSpec(
    arch="llama",
    dim=64,
    hidden_dim=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    vocab_size=131,
    seq_len=192,
    weight_type=FloatType.F32,
)


@dataclass(frozen=True, slots=True)
class Case:
    spec: ModelSpec
    tied: bool = False


CASES = {
    "llama3": Case(replace(BASE, rope=Rope(theta=500000.0))),
    "llama3.1": Case(replace(BASE, rope=Rope(theta=10000.0, scaling=RopeScaling(8.0, 1.0, 4.0, 64)))),
    "llama3.2-tied": Case(replace(BASE, rope=Rope(theta=10000.0, scaling=RopeScaling(32.0, 1.0, 4.0, 64))), tied=True),
    "llama-gelu": Case(replace(BASE, activation="gelu")),
    "mistral-window": Case(replace(BASE, window=50)),
    "qwen2": Case(replace(BASE, arch="qwen2", head_dim=16, n_heads=8, dim=128, norm_eps=1e-6, rope=_HALF)),
    "qwen2.5-tied": Case(replace(BASE, arch="qwen2", head_dim=32, dim=128, norm_eps=1e-6, rope=_HALF), tied=True),
    "qwen3": Case(replace(BASE, arch="qwen3", norm_eps=1e-6, rope=Rope(theta=1e6, layout="half"))),
    "qwen3-moe": Case(replace(BASE, arch="qwen3moe", n_experts=8, n_active_experts=3, norm_eps=1e-6, rope=_HALF)),
    "qwen3-moe-raw": Case(
        replace(BASE, arch="qwen3moe", n_experts=8, n_active_experts=2, norm_eps=1e-6, norm_topk=False, rope=_HALF)
    ),
    "gemma2": Case(
        replace(
            BASE,
            arch="gemma2",
            n_layers=3,
            norm_eps=1e-6,
            rope=_HALF,
            activation="gelu",
            window=50,
            full_every=2,
            query_scalar=24,
        ),
        tied=True,
    ),
    "gemma3": Case(
        replace(
            BASE,
            arch="gemma3",
            n_layers=4,
            n_kv_heads=1,
            norm_eps=1e-6,
            activation="gelu",
            window=50,
            full_every=3,
            rope=Rope(theta=1e6, layout="half", factors=(8.0,) * 16),
            window_rope=_HALF,
            query_scalar=40,
        ),
        tied=True,
    ),
    "mixtral": Case(replace(BASE, arch="mixtral", dim=128, n_experts=4, n_active_experts=2, rope=_HALF)),
}
"""What Hugging Face transformers has an implementation of."""


def tokens_of(case: str, spec: ModelSpec, n_tokens: int = N_TOKENS) -> list[int]:
    """The tokens that a case is run with."""
    tokens: list[int] = np.random.RandomState(_seed(case) + 1).randint(0, spec.vocab_size, n_tokens).tolist()
    return tokens


def rounded(arrays: dict[str, F32], spec: ModelSpec) -> dict[str, F32]:
    """The weights as a file of `spec`'s types holds them."""
    kinds = {tensor.name: tensor.float_type for tensor in tensor_table(spec)}
    return {name: BlockMatrix.from_array(values, kinds[name]).dequantize() for name, values in arrays.items()}


def draw(case: str, spec: ModelSpec, tied: bool = False, embedding_scale: float = 1.0) -> dict[str, F32]:
    """Weights of about unit gain by our names; rows of q and k in the spec's own order."""
    rng = np.random.RandomState(_seed(case))  # whose numbers never change, unlike default_rng's
    tensors: dict[str, F32] = {}
    for tensor in tensor_table(spec):
        rows, columns = tensor.shape(spec)
        whole = np.clip(np.rint(4 * rng.standard_normal((rows, columns))), -15, 15)
        if tensor.name.endswith("norm"):
            values = 1 + whole / 32
        elif tensor.name.endswith("_bias"):
            values = whole / 8
        elif tensor.name == "embedding":
            values = whole / 4 * (embedding_scale / 4 if tied else embedding_scale)
        else:
            values = whole * 2.0 ** round(math.log2(1.5 * columns**-0.5 / 4))
        tensors[tensor.name] = values.astype(np.float32)
        assert np.array_equal(tensors[tensor.name].astype(np.float16), values)
    if tied:
        tensors["head"] = tensors["embedding"]
    return tensors


def halves(weights: F32, n_heads: int) -> F32:
    """Rows of q or k from neighbours (2i, 2i + 1) to halves (i, i + Hd/2), which is transformers' order."""
    rows, columns = weights.shape
    pairs = weights.reshape(n_heads, rows // n_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _seed(case: str) -> int:
    return sum((i + 1) * ord(letter) for i, letter in enumerate(case))
