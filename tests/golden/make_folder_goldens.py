"""Make the folders hf_* and meta_*: tiny models as transformers and torch write them, with transformers' logits.

README.md says how to run it. Each folder is what a reader gets (config.json and safetensors shards, or params.json and
consolidated.*.pth) and `logits.npz`: `tokens` (T,) and `logits` (T, V) in float32. Weights are bfloat16 or float16.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent
N_TOKENS = 20
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def randomized(model: transformers.PreTrainedModel, seed: int, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Weights of about unit gain that `dtype` holds exactly, in a model of float32."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in model.named_parameters():
            drawn = torch.randn(values.shape, generator=generator)
            if name.endswith("norm.weight"):
                drawn = drawn / 8 + (0 if "Gemma" in type(model).__name__ else 1)
            elif values.dim() == 1:
                drawn = drawn / 8
            elif "embed" in name:
                drawn = drawn * (0.25 if model.config.tie_word_embeddings else 1.0)
            else:
                drawn = drawn * 1.5 * values.shape[1] ** -0.5
            values.copy_(drawn.to(dtype))
    return model.eval()


def write_logits(model: transformers.PreTrainedModel, folder: Path, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, model.config.get_text_config().vocab_size, N_TOKENS)
    with torch.no_grad():
        ids = torch.from_numpy(tokens)[None]
        logits = model(ids).logits[0].numpy()
        exact = model.double()(ids).logits[0].numpy()
    np.savez_compressed(folder / "logits.npz", tokens=tokens.astype(np.int32), logits=logits)
    print(
        f"{folder.name}: logits up to {abs(logits).max():.1f}, float32 from float64 by {abs(logits - exact).max():.1e}"
    )


def fresh(name: str) -> Path:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def make_hf(name: str, model: transformers.PreTrainedModel, dtype: torch.dtype, shard: str, seed: int) -> None:
    folder = fresh(name)
    model = randomized(model, seed, dtype)
    # A copy, for a model that has been bfloat16 keeps its RoPE frequencies rounded.
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    write_logits(model, folder, seed)


def meta_rows(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of q or k from transformers' halves back to Meta's neighbours."""
    rows, columns = weight.shape
    return weight.view(n_heads, 2, rows // n_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def make_meta(name: str, n_shards: int, seed: int) -> None:
    folder = fresh(name)
    config = transformers.LlamaConfig(
        **SIZES,
        max_position_embeddings=512,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    model = randomized(transformers.LlamaForCausalLM(config), seed, torch.bfloat16)
    theirs = {name: values.to(torch.bfloat16) for name, values in model.state_dict().items()}
    whole = {
        "tok_embeddings.weight": (theirs["model.embed_tokens.weight"], 0),  # by rows, as Llama 3
        "norm.weight": (theirs["model.norm.weight"], None),
        "output.weight": (theirs["lm_head.weight"], 0),
    }
    for i in range(config.num_hidden_layers):
        ours, hf = f"layers.{i}", f"model.layers.{i}"
        q, k = theirs[f"{hf}.self_attn.q_proj.weight"], theirs[f"{hf}.self_attn.k_proj.weight"]
        whole |= {
            f"{ours}.attention.wq.weight": (meta_rows(q, config.num_attention_heads), 0),
            f"{ours}.attention.wk.weight": (meta_rows(k, config.num_key_value_heads), 0),
            f"{ours}.attention.wv.weight": (theirs[f"{hf}.self_attn.v_proj.weight"], 0),
            f"{ours}.attention.wo.weight": (theirs[f"{hf}.self_attn.o_proj.weight"], 1),
            f"{ours}.feed_forward.w1.weight": (theirs[f"{hf}.mlp.gate_proj.weight"], 0),
            f"{ours}.feed_forward.w2.weight": (theirs[f"{hf}.mlp.down_proj.weight"], 1),
            f"{ours}.feed_forward.w3.weight": (theirs[f"{hf}.mlp.up_proj.weight"], 0),
            f"{ours}.attention_norm.weight": (theirs[f"{hf}.input_layernorm.weight"], None),
            f"{ours}.ffn_norm.weight": (theirs[f"{hf}.post_attention_layernorm.weight"], None),
        }
    for shard in range(n_shards):
        part = {
            name: (tensor if axis is None else tensor.chunk(n_shards, axis)[shard]).clone()
            for name, (tensor, axis) in whole.items()
        }
        torch.save(part, folder / f"consolidated.{shard:02d}.pth")
    params = {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "multiple_of": 16,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "vocab_size": 96,
    }
    (folder / "params.json").write_text(json.dumps(params))
    write_logits(model, folder, seed)


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}")
    llama = transformers.LlamaConfig(
        **SIZES, head_dim=12, max_position_embeddings=512, rope_parameters=LLAMA3_ROPE, attn_implementation="eager"
    )
    make_hf("hf_llama", transformers.LlamaForCausalLM(llama), torch.bfloat16, "16KB", seed=1)
    mistral = transformers.MistralConfig(
        **SIZES,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        attn_implementation="eager",
    )
    make_hf("hf_mistral", transformers.MistralForCausalLM(mistral), torch.float16, "1GB", seed=2)
    make_meta("meta_llama", 2, seed=3)
    gemma = {**SIZES, "head_dim": 12, "max_position_embeddings": 512, "sliding_window": 6, "query_pre_attn_scalar": 10}
    gemma2 = transformers.Gemma2Config(**gemma, attn_implementation="eager")
    make_hf("hf_gemma2", transformers.Gemma2ForCausalLM(gemma2), torch.bfloat16, "1GB", seed=4)
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**gemma, "num_hidden_layers": 3, "sliding_window_pattern": 2, "vocab_size": 96}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    gemma3 = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=95,
        boi_token_index=94,
        eoi_token_index=93,
        attn_implementation="eager",
    )
    make_hf("hf_gemma3", transformers.Gemma3ForConditionalGeneration(gemma3), torch.bfloat16, "1GB", seed=5)


if __name__ == "__main__":
    main()
