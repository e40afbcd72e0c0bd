"""The demo model in PyTorch: a small Llama to train. Knows tensors; knows nothing of text, files or the package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Q40_BLOCK = 32


@dataclass(frozen=True, slots=True)
class NetShape:
    """Widths of the demo model; the defaults are the model that is shipped."""

    dim: int = 256
    hidden_dim: int = 768
    n_layers: int = 6
    n_heads: int = 8
    n_kv_heads: int = 8
    vocab_size: int = 2048
    max_seq_len: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def fake_q40(weight: Tensor) -> Tensor:
    """Return `weight` as a Q40 file would give it back; the gradient passes straight through.

    weight (out, in), blocks of 32 along `in`. The scale is the value of largest magnitude (a tie goes to the
    positive one) over -8, stored as float16; codes come from the float32 scale. Same arithmetic as the Q40 writer.
    """
    blocks = weight.detach().reshape(-1, Q40_BLOCK)
    low = blocks.amin(dim=1, keepdim=True)
    high = blocks.amax(dim=1, keepdim=True)
    scale = torch.where(-low > high, low, high) / -8.0
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)
    codes = (blocks * inverse + 8.5).trunc().clamp(0, 15)
    rounded = ((codes - 8.0) * scale.half().float()).reshape(weight.shape)
    return weight + (rounded - weight).detach()


def rope_table(shape: NetShape) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (max_seq_len, head_dim / 2), for pairs (2i, 2i + 1)."""
    head_dim = shape.dim // shape.n_heads
    frequency = shape.rope_theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(shape.max_seq_len, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each interleaved pair of the last axis. x (B, H, T, Hd); cos, sin (T, Hd / 2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class RmsNorm(nn.Module):
    """Scale rows to unit root-mean-square, then by a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Matrix(nn.Module):
    """A linear map without bias whose weight can be seen through Q40."""

    def __init__(self, n_in: int, n_out: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * std)
        self.through_q40 = False

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fake_q40(self.weight) if self.through_q40 else self.weight)


class Layer(nn.Module):
    """One pre-norm block: attention, then SwiGLU."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        d, h = shape.dim, shape.hidden_dim
        head_dim = d // shape.n_heads
        std, out_std = d**-0.5, d**-0.5 / math.sqrt(2 * shape.n_layers)
        self.shape = shape
        self.rms_att = RmsNorm(d, shape.norm_eps)
        self.wq = Matrix(d, d, std)
        self.wk = Matrix(d, shape.n_kv_heads * head_dim, std)
        self.wv = Matrix(d, shape.n_kv_heads * head_dim, std)
        self.wo = Matrix(d, d, out_std)
        self.rms_ffn = RmsNorm(d, shape.norm_eps)
        self.w1 = Matrix(d, h, std)  # gate
        self.w2 = Matrix(h, d, out_std * math.sqrt(d / h))  # down
        self.w3 = Matrix(d, h, std)  # up

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n_rows, n_tokens, d = x.shape
        normed = self.rms_att(x)
        q = self.wq(normed).view(n_rows, n_tokens, self.shape.n_heads, -1).transpose(1, 2)
        k = self.wk(normed).view(n_rows, n_tokens, self.shape.n_kv_heads, -1).transpose(1, 2)
        v = self.wv(normed).view(n_rows, n_tokens, self.shape.n_kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).reshape(n_rows, n_tokens, d))
        normed = self.rms_ffn(x)
        out: Tensor = x + self.w2(F.silu(self.w1(normed)) * self.w3(normed))
        return out


class Net(nn.Module):
    """The whole model. Token ids (B, T) to logits (B, T, vocab)."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.dim) * 0.5)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        self.rms_final = RmsNorm(shape.dim, shape.norm_eps)
        self.lm_head = Matrix(shape.dim, shape.vocab_size, 0.2 * shape.dim**-0.5)
        cos, sin = rope_table(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        n_tokens = tokens.shape[1]
        x = F.embedding(tokens, self.embedding)
        cos, sin = self.get_buffer("cos")[:n_tokens], self.get_buffer("sin")[:n_tokens]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.rms_final(x))
        return logits

    def see_q40(self, on: bool) -> None:
        """Let every matrix but the embedding be seen as its Q40 form, or as it is."""
        for module in self.modules():
            if isinstance(module, Matrix):
                module.through_q40 = on
