"""Mixtral (arXiv:2401.04088): a Llama whose feed-forward network is a mixture of experts."""

from __future__ import annotations

from dllama_zmq.models.experts import MixtureOfExperts
from dllama_zmq.models.llama import Llama
from dllama_zmq.models.tensors import attention_tensors, decoder_tensors, expert_tensors, norm_tensor
from dllama_zmq.spec import ModelSpec, TensorSpec


def mixtral_tensors(spec: ModelSpec) -> list[TensorSpec]:
    """Every tensor of a Mixtral, in file order."""
    experts = expert_tensors(spec, spec.weight_type, ("up", "gate", "down"))
    norms = [norm_tensor("attention_norm"), norm_tensor("ffn_norm")]
    return decoder_tensors(spec, [*attention_tensors(spec), *experts, *norms])


class Mixtral(Llama):
    feed_forward = MixtureOfExperts
