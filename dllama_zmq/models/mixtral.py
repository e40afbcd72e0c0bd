"""Mixtral (arXiv:2401.04088): a Llama whose feed-forward network is a mixture of experts."""

from __future__ import annotations

from dllama_zmq.models.experts import MixtureOfExperts
from dllama_zmq.models.llama import Llama


class Mixtral(Llama):
    feed_forward = MixtureOfExperts
