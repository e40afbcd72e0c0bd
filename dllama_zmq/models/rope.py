"""Angles of the rotary position embedding, with Llama 3.1's scaling."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dllama_zmq.quants import F32
from dllama_zmq.spec import Rope, RopeScaling


def rope_frequencies(rope: Rope, head_dim: int) -> npt.NDArray[np.float64]:
    """Radians per position of each pair, (head_dim / 2,). Source: arXiv:2104.09864 §3.2."""
    frequencies: npt.NDArray[np.float64] = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.factors:
        frequencies /= rope.factors
        return frequencies
    return frequencies if rope.scaling is None else _scaled(frequencies, rope.scaling)


def rope_angles(frequencies: npt.NDArray[np.float64], positions: npt.NDArray[np.int64]) -> tuple[F32, F32]:
    """cos and sin for `positions` (T,): two arrays (T, head_dim / 2). Angles are float64: exact at position 10^5."""
    angles = positions[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _scaled(frequencies: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """Stretch long wavelengths by `factor`, keep short ones, blend between. Source: llama-models, `apply_scaling`."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (scaling.original_seq_len / wavelengths - low) / (high - low) if high != low else np.zeros_like(frequencies)
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = np.where(wavelengths > scaling.original_seq_len / low, frequencies / scaling.factor, blended)
    return np.where(wavelengths < scaling.original_seq_len / high, frequencies, stretched)
