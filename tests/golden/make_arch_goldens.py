"""Make arch_*.npz: logits of random tiny models by Hugging Face transformers; README.md says how to run it.

The models are those of tests/drawn.py, which draws their weights anew each time. Each file holds `tokens` (T,) and
logits (R, V) float32 after the tokens at `rows` (R,): `f32` of the weights as drawn; `q80` and `q40` of weights rounded
to those types, and with every product's input rounded to Q80, as this package's products are defined.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from msgspec.structs import replace

from dllama_zmq.quants import F32
from dllama_zmq.spec import FloatType, ModelSpec

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from drawn import CASES, ROWS, Case, draw, halves, rounded, tokens_of  # noqa: E402


def build(case: Case, tensors: dict[str, F32], tied: bool) -> Any:
    """transformers' own model of a case."""
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
    common: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.dim,
        "intermediate_size": spec.hidden_dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
        "attn_implementation": "eager",
        "dtype": "float32",
        "hidden_act": "gelu_pytorch_tanh" if spec.activation == "gelu" else "silu",
    }
    moe = {"num_experts_per_tok": spec.n_active_experts, "experts_implementation": "eager"}
    if spec.arch == "llama" and spec.window is not None:
        config = transformers.MistralConfig(**common, head_dim=spec.head_dim, sliding_window=spec.window)
        model = transformers.MistralForCausalLM(config)
    elif spec.arch == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, head_dim=spec.head_dim))
    elif spec.arch == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common))
    elif spec.arch == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common, head_dim=spec.head_dim))
    elif spec.arch in ("gemma2", "gemma3"):
        every, activation = spec.full_every, common.pop("hidden_act")
        common |= {
            "head_dim": spec.head_dim,
            "hidden_activation": activation,
            "query_pre_attn_scalar": spec.query_scalar,
            "sliding_window": spec.window,
        }
        kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(spec.n_layers)]
        if spec.arch == "gemma2":
            model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**common, layer_types=kinds))
        else:
            common["rope_parameters"] = {
                "full_attention": {**rope, "rope_type": "linear", "factor": spec.rope.factors[0]},
                "sliding_attention": {"rope_type": "default", "rope_theta": spec.window_rope.theta},
            }
            model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**common, layer_types=kinds))
    elif spec.arch == "qwen3moe":
        config = transformers.Qwen3MoeConfig(
            **common,
            **moe,
            head_dim=spec.head_dim,
            num_experts=spec.n_experts,
            norm_topk_prob=spec.norm_topk,
            moe_intermediate_size=spec.hidden_dim,
        )
        model = transformers.Qwen3MoeForCausalLM(config)
    else:
        config = transformers.MixtralConfig(**common, **moe, num_local_experts=spec.n_experts, sliding_window=None)
        model = transformers.MixtralForCausalLM(config)
    model = model.eval()
    state = {name: torch.from_numpy(values) for name, values in hf_state(spec, tensors).items()}
    for name, shaped in model.state_dict().items():
        state[name] = state[name].reshape(shaped.shape)
    model.load_state_dict(state, strict=True)
    return model


def hf_state(spec: ModelSpec, ours: dict[str, F32]) -> dict[str, F32]:
    """Our tensors by transformers' names and in its layout."""
    theirs = {
        "model.embed_tokens.weight": ours["embedding"],
        "model.norm.weight": ours["final_norm"],
        "lm_head.weight": ours["head"],
    }
    for i in range(spec.n_layers):
        layer, to = f"layers.{i}.", f"model.layers.{i}."
        for letter, n_heads in (("q", spec.n_heads), ("k", spec.n_kv_heads), ("v", 0), ("o", 0)):
            weights = ours[f"{layer}attention.{letter}"]
            if n_heads and spec.rope.layout == "interleaved":
                weights = halves(weights, n_heads)
            theirs[f"{to}self_attn.{letter}_proj.weight"] = weights
            for ending, name in (("bias", f"{letter}_proj.bias"), ("norm", f"{letter}_norm.weight")):
                if f"{layer}attention.{letter}_{ending}" in ours:
                    theirs[f"{to}self_attn.{name}"] = ours[f"{layer}attention.{letter}_{ending}"]
        theirs[f"{to}input_layernorm.weight"] = ours[f"{layer}attention_norm"]
        if spec.arch in ("gemma2", "gemma3"):
            theirs[f"{to}post_attention_layernorm.weight"] = ours[f"{layer}attention_out_norm"]
            theirs[f"{to}pre_feedforward_layernorm.weight"] = ours[f"{layer}ffn_norm"]
            theirs[f"{to}post_feedforward_layernorm.weight"] = ours[f"{layer}ffn_out_norm"]
        else:
            theirs[f"{to}post_attention_layernorm.weight"] = ours[f"{layer}ffn_norm"]
        if spec.n_experts:
            experts = [f"{layer}experts.{e}." for e in range(spec.n_experts)]
            theirs[f"{to}mlp.gate.weight"] = ours[f"{layer}router"]
            theirs[f"{to}mlp.experts.gate_up_proj"] = np.stack(
                [np.concatenate([ours[f"{e}gate"], ours[f"{e}up"]]) for e in experts]
            )
            theirs[f"{to}mlp.experts.down_proj"] = np.stack([ours[f"{e}down"] for e in experts])
        else:
            for name in ("gate", "down", "up"):
                theirs[f"{to}mlp.{name}_proj.weight"] = ours[f"{layer}ffn.{name}"]
    if spec.arch in ("gemma2", "gemma3"):  # whose norms add 1
        theirs |= {name: gains - 1 for name, gains in theirs.items() if name.endswith("norm.weight")}
    return theirs


@contextmanager
def q80_inputs(spec: ModelSpec) -> Iterator[None]:
    """Within it, every product's input is rounded to Q80 (FORMATS.md §1), but that of a router."""
    linear = torch.nn.functional.linear

    def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.shape[0] == spec.n_experts:
            return linear(x, weight, bias)
        blocks = x.reshape(*x.shape[:-1], -1, 32)
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        whole = torch.where(scales > 0, torch.round(blocks / scales), 0)
        return linear((whole * scales.half().to(x.dtype)).reshape(x.shape), weight, bias)

    torch.nn.functional.linear = apply
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}")
    for name, case in CASES.items():
        case.spec.check()
        tensors = draw(name, case.spec, case.tied)
        tokens = tokens_of(name, case.spec)
        ids = torch.tensor(tokens)[None]
        logits = {}
        with torch.no_grad():
            model = build(case, tensors, case.tied)
            logits["f32"] = model(ids).logits[0].numpy()[ROWS]
            exact = model.double()(ids).logits[0].numpy()[ROWS]
            for kind in (FloatType.Q80, FloatType.Q40):
                model = build(case, rounded(tensors, replace(case.spec, weight_type=kind)), tied=False)
                with q80_inputs(case.spec):
                    logits[kind.name.lower()] = model(ids).logits[0].numpy()[ROWS]
        path = FOLDER / f"arch_{name}.npz"
        np.savez_compressed(path, tokens=np.array(tokens, np.int32), rows=np.array(ROWS), **logits)
        print(
            f"{path.name}: {path.stat().st_size} bytes, logits up to {abs(logits['f32']).max():.1f}, "
            f"float32 from float64 by {abs(logits['f32'] - exact).max():.1e}"
        )


if __name__ == "__main__":
    main()
