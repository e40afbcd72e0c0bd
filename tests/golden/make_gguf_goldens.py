"""Make gguf_*.npz and gguf_*.gguf: what gguf-py and transformers make of GGUF data. README.md says how to run it.

gguf_blocks.npz: blocks of random bytes and scales, extreme ones too, and their values by gguf.quants.dequantize.
gguf_metadata.gguf: a file of gguf.GGUFWriter with a value of every metadata type and a tensor of every plain type.
gguf_ARCH.gguf, gguf_ARCH.npz: random tiny models written by gguf.GGUFWriter as llama.cpp's converter lays them out, and
the logits (T, V) of transformers that loaded that very file, after each of `tokens`.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from numpy.random import Generator

FOLDER = Path(__file__).parent
N_TOKENS = 24
F32 = np.ndarray
EXTREMES = np.array([0.0, 65504.0, -65504.0, 6e-8, -6e-8, 1e-4, 1.0], np.float16)


def blocks(rng: Generator, kind: Type, scales_at: list[int], n: int = 12) -> F32:
    """Random bytes with scales of about 0.01, the last ones' extreme; two blocks all of the same byte."""
    data = rng.integers(0, 256, (n + len(EXTREMES), gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    data[0], data[1] = 0, 255
    for at in scales_at:
        scales = np.concatenate([rng.normal(0, 0.01, n).astype(np.float16), EXTREMES])
        data[:, at : at + 2] = scales[:, None].view(np.uint8)
    return data


def make_blocks() -> None:
    rng = np.random.default_rng(1)
    arrays = {}
    for kind, scales_at in [
        (Type.Q4_K, [0, 2]),
        (Type.Q5_K, [0, 2]),
        (Type.Q6_K, [208]),
        (Type.Q5_0, [0]),
        (Type.Q5_1, [0, 2]),
        (Type.Q2_K, [80, 82]),
        (Type.Q3_K, [108]),
        (Type.IQ4_NL, [0]),
        (Type.IQ4_XS, [0]),
        (Type.MXFP4, []),
        (Type.TQ1_0, [52]),
        (Type.TQ2_0, [64]),
    ]:
        data = blocks(rng, kind, scales_at)
        arrays[f"{kind.name}_bytes"] = data
        arrays[f"{kind.name}_values"] = gguf.quants.dequantize(data, kind)
    np.savez_compressed(FOLDER / "gguf_blocks.npz", **arrays)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_metadata() -> None:
    writer = gguf.GGUFWriter(FOLDER / "gguf_metadata.gguf", "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -100)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_float32("a.f32", 0.1)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "Grüße, 世界\n")
    writer.add_array("a.texts", ["", "▁the", "ab\0c", "🦙"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.25])
    writer.add_array("a.bools", [True, False, True])
    values = np.arange(64, dtype=np.float32).reshape(2, 32) - 20
    for kind in (Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0):
        writer.add_tensor(f"t.{kind.name}", gguf.quants.quantize(values, kind), raw_dtype=kind)
    finish(writer)


def weights(rng: Generator, rows: int, columns: int, *, scale: float = 1.0) -> F32:
    return (scale * rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)


def make_model(arch: str, seed: int) -> None:
    dim, hidden, layers, heads, kv_heads, head_dim, vocab, experts = 32, 64, 2, 4, 2, 8, 96, 0
    if arch == "qwen3":
        head_dim = 16
    if arch == "qwen3moe":
        hidden, experts = 32, 4
    rng = np.random.default_rng(seed)
    path = FOLDER / f"gguf_{arch}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocab)
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(hidden)

    def add(name: str, values: F32, kind: Type = Type.Q8_0) -> None:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", weights(rng, vocab, dim, scale=8), Type.F16)
    for i in range(layers):
        blk = f"blk.{i}"
        add(f"{blk}.attn_q.weight", weights(rng, heads * head_dim, dim, scale=2))
        add(f"{blk}.attn_k.weight", weights(rng, kv_heads * head_dim, dim, scale=2))
        add(f"{blk}.attn_v.weight", weights(rng, kv_heads * head_dim, dim), Type.F16)
        add(f"{blk}.attn_output.weight", weights(rng, dim, heads * head_dim), Type.Q4_0)
        if arch == "qwen2":
            for letter, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                add(f"{blk}.attn_{letter}.bias", rng.standard_normal(n * head_dim).astype(np.float32), Type.F32)
        if arch.startswith("qwen3"):
            for letter in "qk":
                gain = 1 + 0.1 * rng.standard_normal(head_dim).astype(np.float32)
                add(f"{blk}.attn_{letter}_norm.weight", gain, Type.F32)
        if experts:
            add(f"{blk}.ffn_gate_inp.weight", weights(rng, experts, dim, scale=3), Type.F32)
        for part, rows, columns in (("gate", hidden, dim), ("up", hidden, dim), ("down", dim, hidden)):
            if experts:
                stacked = np.stack([weights(rng, rows, columns) for _ in range(experts)])
                add(f"{blk}.ffn_{part}_exps.weight", stacked)
            else:
                add(f"{blk}.ffn_{part}.weight", weights(rng, rows, columns))
        for norm in ("attn_norm", "ffn_norm"):
            add(f"{blk}.{norm}.weight", 1 + 0.1 * rng.standard_normal(dim).astype(np.float32), Type.F32)
    add("output_norm.weight", 1 + 0.1 * rng.standard_normal(dim).astype(np.float32), Type.F32)
    if arch != "qwen2":  # whose head is the embedding
        add("output.weight", weights(rng, vocab, dim, scale=3))
    finish(writer)

    config = transformers.AutoConfig.from_pretrained(FOLDER, gguf_file=path.name)
    if arch.startswith("qwen3"):  # these transformers does not take from a file
        config.head_dim = head_dim
    if experts:
        config.moe_intermediate_size, config.norm_topk_prob = hidden, True
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    tokens = rng.integers(0, vocab, N_TOKENS)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)[None], use_cache=False).logits[0].numpy()
    np.savez_compressed(FOLDER / f"gguf_{arch}.npz", tokens=tokens, logits=logits.astype(np.float32))
    used = (config.rms_norm_eps, config.rope_parameters, config.num_hidden_layers, config.num_key_value_heads)
    print(f"gguf_{arch}: {path.stat().st_size} bytes, logits up to {np.abs(logits).max():.2f}", *used)


def main() -> None:
    """Write every file."""
    torch.set_num_threads(1)
    make_blocks()
    make_metadata()
    for seed, arch in enumerate(["llama", "qwen2", "qwen3", "qwen3moe"]):
        make_model(arch, seed)


if __name__ == "__main__":
    main()
