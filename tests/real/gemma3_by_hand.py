"""Gemma 3 in float32 NumPy, as published (arXiv:2503.19786), of a GGUF file's weights as gguf dequantizes them.

Nothing is rounded on the way, and no code is shared with the package. Of 2,000 tokens of alice.txt its logits are
within 2e-4 of those of Hugging Face transformers 5.24 with the same weights in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dllama_zmq.quants import F32

ROWS = 256
"""Tokens whose logits are made at a time."""
_GLOBAL_EVERY, _LOCAL_THETA = 6, 10000.0
"""What no key of a file says: every so many layers one has no window; the RoPE base of those with one."""


class Gemma3:
    """A Gemma 3 of a GGUF file."""

    def __init__(self, path: Path) -> None:
        import gguf  # installed by `make test-real` alone

        reader: Any = gguf.GGUFReader(path)
        self._n = {
            name.removeprefix("gemma3."): field.contents()
            for name, field in reader.fields.items()
            if name.startswith("gemma3.")
        }
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._dequantize: Any = gguf.dequantize
        self._embedding = self._of("token_embd.weight")

    def logits(self, tokens: Sequence[int]) -> Iterator[F32]:
        """The logits (R, V) after each of `tokens`, in pieces of ROWS rows."""
        hidden = self._norm(self._hidden(tokens), "output_norm.weight")
        for start in range(0, len(tokens), ROWS):
            yield hidden[start : start + ROWS] @ self._embedding.T

    def _of(self, name: str) -> F32:
        tensor = self._tensors[name]
        values: F32 = self._dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return values

    def _hidden(self, tokens: Sequence[int]) -> F32:
        """(T, D) after the last layer, before its norm."""
        x: F32 = self._embedding[list(tokens)] * np.float32(np.sqrt(self._embedding.shape[1]))
        for layer in range(self._n["block_count"]):
            names = f"blk.{layer}."
            out = self._attention(self._norm(x, f"{names}attn_norm.weight"), layer)
            x = x + self._norm(out, f"{names}post_attention_norm.weight")
            inside = self._norm(x, f"{names}ffn_norm.weight")
            gate = inside @ self._of(f"{names}ffn_gate.weight").T
            up = inside @ self._of(f"{names}ffn_up.weight").T
            cubic = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)
            gelu = np.float32(0.5) * gate * (1 + np.tanh(cubic))
            out = (gelu * up) @ self._of(f"{names}ffn_down.weight").T
            x = x + self._norm(out, f"{names}post_ffw_norm.weight")
        return x

    def _attention(self, x: F32, layer: int) -> F32:
        names, head_dim = f"blk.{layer}.", self._n["attention.key_length"]
        local = bool((layer + 1) % _GLOBAL_EVERY)
        positions = np.arange(len(x))
        theta = _LOCAL_THETA if local else self._n["rope.freq_base"]
        angles = positions[:, None] / theta ** (np.arange(0, head_dim, 2) / head_dim)

        def heads(letter: str) -> F32:
            rows: F32 = x @ self._of(f"{names}attn_{letter}.weight").T
            return rows.reshape(len(x), -1, head_dim).transpose(1, 0, 2)  # (H, T, Hd)

        q, k, v = heads("q"), heads("k"), heads("v")
        q = _rotated(self._norm(q, f"{names}attn_q_norm.weight"), angles)
        k = _rotated(self._norm(k, f"{names}attn_k_norm.weight"), angles)
        distance = positions[:, None] - positions
        hidden = (distance < 0) | (local & (distance >= self._n["attention.sliding_window"]))
        out = []
        for i, head in enumerate(q):
            shared = i * len(k) // len(q)
            scores = np.where(hidden, -np.inf, head @ k[shared].T / np.float32(np.sqrt(head_dim))).astype(np.float32)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out.append(weights / weights.sum(axis=1, keepdims=True) @ v[shared])
        joined: F32 = np.concatenate(out, axis=1) @ self._of(f"{names}attn_output.weight").T
        return joined

    def _norm(self, x: F32, name: str) -> F32:
        eps = self._n["attention.layer_norm_rms_epsilon"]
        scaled: F32 = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps)) * self._of(name)
        return scaled


def _rotated(heads: F32, angles: Any) -> F32:
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
