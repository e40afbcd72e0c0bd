"""The names of this package's tensors in the files of Hugging Face transformers. Knows no file."""

from __future__ import annotations

import re

from dllama_zmq.spec import Architecture

_TOP = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_LAYER = {
    "attention.q": "self_attn.q_proj.weight",
    "attention.k": "self_attn.k_proj.weight",
    "attention.v": "self_attn.v_proj.weight",
    "attention.o": "self_attn.o_proj.weight",
    "attention.q_bias": "self_attn.q_proj.bias",
    "attention.k_bias": "self_attn.k_proj.bias",
    "attention.v_bias": "self_attn.v_proj.bias",
    "attention.q_norm": "self_attn.q_norm.weight",
    "attention.k_norm": "self_attn.k_norm.weight",
    "attention_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn.gate": "mlp.gate_proj.weight",
    "ffn.up": "mlp.up_proj.weight",
    "ffn.down": "mlp.down_proj.weight",
    "router": "mlp.gate.weight",
}
_EXPERT = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
_OURS = re.compile(r"layers\.(\d+)\.(?:experts\.(\d+)\.)?(.+)")
_UNUSED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")


def hf_name(arch: Architecture, name: str) -> str:
    """transformers' name of the tensor `name`."""
    if name in _TOP:
        return _TOP[name]
    found = _OURS.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is not a tensor of this package")
    layer, expert, rest = found.groups()
    if arch == "mixtral" and expert is not None:
        theirs = f"block_sparse_moe.experts.{expert}.{_MIXTRAL_EXPERT[rest]}.weight"
    elif expert is not None:
        theirs = f"mlp.experts.{expert}.{_EXPERT[rest]}.weight"
    elif arch == "mixtral" and rest == "router":
        theirs = "block_sparse_moe.gate.weight"
    else:
        theirs = _LAYER[rest]
    return f"model.layers.{layer}.{theirs}"


def is_unused(name: str) -> bool:
    """Whether a tensor of old files is not needed, because it is computed."""
    return _UNUSED.fullmatch(name) is not None
