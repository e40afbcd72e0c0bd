"""Make llama_*.npz: random tiny Llamas and their logits by Hugging Face transformers. README.md says how to run it.

Each file holds a model in this package's own layout (q and k rows in interleaved order) and what another program
computed from the same numbers: `spec` (JSON), `tokens` (T,), `logits` (T, V) float32, and every tensor by its name.
The weights are drawn as small whole numbers times a power of two, so that float16 holds them exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import transformers
from msgspec.structs import replace

from dllama_zmq.models import tensor_table
from dllama_zmq.spec import FloatType, ModelSpec, Rope, RopeScaling

FOLDER = Path(__file__).parent
N_TOKENS = 40  # more than one step of a prompt, so that the KV cache carries some of them
F16 = npt.NDArray[np.float16]

BASE = ModelSpec(
    arch="llama",
    dim=64,
    hidden_dim=96,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=8,
    vocab_size=128,
    seq_len=64,
    weight_type=FloatType.F32,
)


@dataclass(frozen=True, slots=True)
class Case:
    spec: ModelSpec
    tied: bool = False
    embedding_scale: float = 1.0


CASES = {
    "gqa": Case(BASE),
    "mha": Case(replace(BASE, dim=32, hidden_dim=64, n_heads=4, n_kv_heads=4)),
    # Wavelengths of 6 to 8000 tokens: the first pair is kept, two are blended, the others stretched eightfold.
    "llama31": Case(
        replace(
            BASE,
            n_heads=4,
            head_dim=16,
            rope=Rope(theta=10000.0, scaling=RopeScaling(8.0, 1.0, 4.0, 64)),
        )
    ),
    "tied": Case(replace(BASE, n_heads=4, n_kv_heads=1, head_dim=16), tied=True, embedding_scale=0.25),
    "odd": Case(replace(BASE, dim=96, hidden_dim=160, n_heads=4, n_kv_heads=2, head_dim=24, vocab_size=131)),
    "head_dim": Case(replace(BASE, dim=84, hidden_dim=150, n_heads=6, n_kv_heads=2, head_dim=10, vocab_size=101)),
    # Embeddings so small that the first norm's mean square is near its epsilon.
    "eps": Case(replace(BASE, norm_eps=1e-6, rope=Rope(theta=500000.0)), embedding_scale=2.0**-9),
}


def hf_names(spec: ModelSpec) -> dict[str, str]:
    """Our name of every tensor, and transformers' name of it."""
    names = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
    for i in range(spec.n_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for name in "qkvo":
            names[f"{ours}.attention.{name}"] = f"{theirs}.self_attn.{name}_proj"
        for name in ("gate", "down", "up"):
            names[f"{ours}.ffn.{name}"] = f"{theirs}.mlp.{name}_proj"
        names[f"{ours}.attention_norm"] = f"{theirs}.input_layernorm"
        names[f"{ours}.ffn_norm"] = f"{theirs}.post_attention_layernorm"
    return names


def draw(case: Case, seed: int) -> dict[str, F16]:
    """Weights of about unit gain by our names, in transformers' layout."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, F16] = {}
    for tensor in tensor_table(case.spec):
        rows, columns = tensor.shape(case.spec)
        whole = np.clip(np.rint(4 * rng.standard_normal((rows, columns))), -15, 15)
        if tensor.name.endswith("norm"):
            values = 1 + whole / 32
        elif tensor.name == "embedding":
            values = whole / 4 * case.embedding_scale
        else:
            values = whole * 2.0 ** round(math.log2(1.5 * columns**-0.5 / 4))
        tensors[tensor.name] = values.astype(np.float16)
        assert np.array_equal(tensors[tensor.name], values)
    if case.tied:
        tensors["head"] = tensors["embedding"]
    return tensors


def build(case: Case, tensors: dict[str, F16]) -> transformers.LlamaForCausalLM:
    spec = case.spec
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": spec.rope.theta}
    if spec.rope.scaling is not None:
        scaling = spec.rope.scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_seq_len,
        }
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.dim,
        intermediate_size=spec.hidden_dim,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=512,
        rms_norm_eps=spec.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=case.tied,
        attn_implementation="eager",
        dtype="float32",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    state = {
        f"{theirs}.weight": torch.from_numpy(tensors[ours].astype(np.float32))
        for ours, theirs in hf_names(spec).items()
    }
    for name, shaped in model.state_dict().items():
        state[name] = state[name].reshape(shaped.shape)
    model.load_state_dict(state, strict=True)
    return model


def interleaved(weights: F16, n_heads: int) -> F16:
    """Rows of q or k from halves (i, i + Hd/2) to neighbours (2i, 2i + 1)."""
    rows, columns = weights.shape
    halves = weights.reshape(n_heads, 2, rows // n_heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}")
    for seed, (name, case) in enumerate(CASES.items(), start=1):
        spec = case.spec
        spec.check()
        tensors = draw(case, seed)
        model = build(case, tensors)
        tokens = np.random.default_rng(100 + seed).integers(0, spec.vocab_size, N_TOKENS)
        with torch.no_grad():
            ids = torch.from_numpy(tokens)[None]
            logits = model(ids).logits[0].numpy()
            exact = model.double()(ids).logits[0].numpy()
        for i in range(spec.n_layers):
            for letter, n_heads in (("q", spec.n_heads), ("k", spec.n_kv_heads)):
                tensor = f"layers.{i}.attention.{letter}"
                tensors[tensor] = interleaved(tensors[tensor], n_heads)
        path = FOLDER / f"llama_{name}.npz"
        header = np.array(msgspec.json.encode(spec).decode())
        np.savez_compressed(path, spec=header, tokens=tokens.astype(np.int32), logits=logits, **tensors)
        print(
            f"{path.name}: {path.stat().st_size} bytes, logits up to {abs(logits).max():.1f}, "
            f"float32 from float64 by {abs(logits - exact).max():.1e}"
        )


if __name__ == "__main__":
    main()
