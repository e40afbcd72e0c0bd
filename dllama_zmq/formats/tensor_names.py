"""The names of this package's tensors in the files of other programs. Knows no file."""

from __future__ import annotations

import re

from dllama_zmq.spec import Architecture

_NAMES = {
    # here: in GGUF files, in folders of Hugging Face, in folders of Meta
    "embedding": ("token_embd", "model.embed_tokens", "tok_embeddings"),
    "final_norm": ("output_norm", "model.norm", "norm"),
    "head": ("output", "lm_head", "output"),
    "attention.q": ("attn_q", "self_attn.q_proj", "attention.wq"),
    "attention.k": ("attn_k", "self_attn.k_proj", "attention.wk"),
    "attention.v": ("attn_v", "self_attn.v_proj", "attention.wv"),
    "attention.o": ("attn_output", "self_attn.o_proj", "attention.wo"),
    "attention.q_norm": ("attn_q_norm", "self_attn.q_norm", ""),
    "attention.k_norm": ("attn_k_norm", "self_attn.k_norm", ""),
    "attention_norm": ("attn_norm", "input_layernorm", "attention_norm"),
    "attention_out_norm": ("post_attention_norm", "post_attention_layernorm", ""),
    "ffn_out_norm": ("post_ffw_norm", "post_feedforward_layernorm", ""),
    "ffn_norm": ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
    "ffn.gate": ("ffn_gate", "mlp.gate_proj", "feed_forward.w1"),
    "ffn.down": ("ffn_down", "mlp.down_proj", "feed_forward.w2"),
    "ffn.up": ("ffn_up", "mlp.up_proj", "feed_forward.w3"),
    "router": ("ffn_gate_inp", "mlp.gate", ""),
    "experts.gate": ("ffn_gate_exps", "mlp.experts.{}.gate_proj", ""),
    "experts.down": ("ffn_down_exps", "mlp.experts.{}.down_proj", ""),
    "experts.up": ("ffn_up_exps", "mlp.experts.{}.up_proj", ""),
}
_HF_OWN: dict[Architecture, dict[str, str]] = {
    "gemma2": {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": {"ffn_norm": "pre_feedforward_layernorm"},
    "mixtral": {
        "router": "block_sparse_moe.gate",
        "experts.gate": "block_sparse_moe.experts.{}.w1",
        "experts.down": "block_sparse_moe.experts.{}.w2",
        "experts.up": "block_sparse_moe.experts.{}.w3",
    },
}
"""transformers' names that only one architecture has."""
_GGUF, _HF, _META = ({ours: names[column] for ours, names in _NAMES.items()} for column in range(3))
_OURS = re.compile(r"layers\.(\d+)\.(?:(experts)\.(\d+)\.)?(.+)")


def gguf_name(name: str) -> str:
    """The GGUF name of a model's tensor. The experts of a layer share one tensor."""
    return _theirs(name, "blk.", _GGUF)


def hf_name(arch: Architecture, name: str) -> str:
    """transformers' name of a model's tensor."""
    return _theirs(name, "model.layers.", _HF | _HF_OWN.get(arch, {}))


def meta_name(name: str) -> str:
    """Meta's name of a Llama's tensor."""
    return _theirs(name, "layers.", _META)


def _theirs(name: str, layers: str, names: dict[str, str]) -> str:
    found = _OURS.fullmatch(name)
    layer, experts, expert, rest = (None, None, None, name) if found is None else found.groups()
    ours = f"{experts}.{rest}" if experts else rest
    theirs = names[ours.removesuffix("_bias")].format(expert) + (".bias" if ours.endswith("_bias") else ".weight")
    return theirs if layer is None else f"{layers}{layer}.{theirs}"
