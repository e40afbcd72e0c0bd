"""A worker's shard, written from bus/PROTOCOL.md §6 and §8 alone with NumPy: nothing here imports the package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from integration.stranger_blocks import BLOCK, F32, blocks_of, to_q80, values_of

PAGE = 64
"""§5: positions of a page."""

_ATTENTION = ["attention.q", "attention.k", "attention.v", "attention.o"]
_DENSE = ["ffn.gate", "ffn.down", "ffn.up"]
_NORMS = ["attention_norm", "ffn_norm"]
_GEMMA_NORMS = ["attention_norm", "attention_out_norm", "ffn_norm", "ffn_out_norm"]
_OUT_NORMS = {
    "grok1": ("ffn_norm", "moe_out_norm"),
    **dict.fromkeys(("gemma2", "gemma3"), ("attention_out_norm", "ffn_out_norm")),
}
_SOFTCAP = {"grok1": 30, "gemma2": 50}
"""§8."""
_Q_K_NORMS = ["attention.q_norm", "attention.k_norm"]
LAYERS = {
    "llama": [*_ATTENTION, *_DENSE, *_NORMS],
    "qwen2": [*_ATTENTION, *_DENSE, *(f"attention.{letter}_bias" for letter in "qkv"), *_NORMS],
    "qwen3": [*_ATTENTION, *_DENSE, *_Q_K_NORMS, *_NORMS],
    "qwen3moe": [*_ATTENTION, "router", "gate down up", *_Q_K_NORMS, *_NORMS],
    "mixtral": [*_ATTENTION, "router", "up gate down", *_NORMS],
    "grok1": [*_ATTENTION, "router", "up gate down", *_NORMS, "moe_norm", "moe_out_norm"],
    "gemma2": [*_ATTENTION, *_DENSE, *_GEMMA_NORMS],
    "gemma3": [*_ATTENTION, *_DENSE, *_Q_K_NORMS, *_GEMMA_NORMS],
}
"""§6: the tensors of a layer, in order; the experts' in one text."""
_AXES = {
    "attention.q": ("heads", "embed"),
    "attention.k": ("kv_heads", "embed"),
    "attention.v": ("kv_heads", "embed"),
    "attention.o": ("embed", "heads"),
    "attention.q_bias": ("one", "heads"),
    "attention.k_bias": ("one", "kv_heads"),
    "attention.v_bias": ("one", "kv_heads"),
    "attention.q_norm": ("one", "head_dim"),
    "attention.k_norm": ("one", "head_dim"),
    "gate": ("ffn", "embed"),
    "up": ("ffn", "embed"),
    "down": ("embed", "ffn"),
    "router": ("experts", "embed"),
    "head": ("vocab", "embed"),
}


class Shard:
    """What node `node` of `nodes` holds, and its arithmetic. The caller fills `weights`, name by name of `table`."""

    def __init__(self, spec: dict[str, Any], node: int, nodes: int, kv: Any, pages: int) -> None:
        self.spec = spec
        n_heads, head_dim, group = spec["n_heads"], spec["head_dim"], spec["n_heads"] // spec["n_kv_heads"]
        self.stored = dict(spec["stored"])
        values = min(32, max(BLOCK[kind][0] for kind in [spec["weight_type"], *self.stored.values()]))
        heads = (n_heads * node // nodes, n_heads * (node + 1) // nodes)
        kv_heads = (heads[0] // group, -(-heads[1] // group))
        n_blocks = spec["hidden_dim"] // values
        self.first_id = spec["vocab_size"] * node // nodes
        self.width = {
            "one": 1,
            "embed": spec["dim"],
            "head_dim": head_dim,
            "experts": spec["n_experts"],
            "heads": (heads[1] - heads[0]) * head_dim,
            "kv_heads": (kv_heads[1] - kv_heads[0]) * head_dim,
            "ffn": (n_blocks * (node + 1) // nodes - n_blocks * node // nodes) * values,
            "vocab": spec["vocab_size"] * (node + 1) // nodes - self.first_id,
        }
        self.first = {"heads": heads[0] * head_dim, "ffn": n_blocks * node // nodes * values}
        self.kv_of_head = [h // group - kv_heads[0] for h in range(*heads)]
        possible = [
            n
            for n in (1, 2, 4, 8, 16, 32, 64)
            if n_heads % n == 0
            and n_heads * head_dim % (n * values) == 0
            and spec["hidden_dim"] % (n * values) == 0
            and n <= spec["vocab_size"]
        ]
        self.segments = max(possible) // nodes
        self.kv_most = np.float32(65504 if kv is np.float16 else np.inf)
        self.cache = np.zeros((spec["n_layers"], pages * PAGE, 2, kv_heads[1] - kv_heads[0], head_dim), kv)
        self.weights: dict[str, tuple[int, Any, slice]] = {}
        names = []
        for name in LAYERS[spec["arch"]]:
            if " " in name:
                names += [f"experts.{e}.{part}" for e in range(spec["n_experts"]) for part in name.split()]
            else:
                names.append(name)
        names = [f"layers.{i}.{name}" for i in range(spec["n_layers"]) for name in names]
        self.table = [self._row(name) for name in [*names, "final_norm", "head"]]

    def _row(self, name: str) -> tuple[str, int, slice, int]:
        """Name, rows, columns and type of a region."""
        rest = name.split(".", 2)[2] if name.startswith("layers.") else name
        rows, columns = _AXES.get(rest) or _AXES.get(rest.rpartition(".")[2]) or ("one", "embed")
        plain = rows == "one" or (rest == "router" and self.spec["arch"] == "qwen3moe")
        kind = self.stored.get(name, F32 if plain else self.spec["weight_type"])
        first = self.first.get(columns, 0)
        return name, self.width[rows], slice(first, first + self.width[columns]), kind

    # --- the halves of a layer ----------------------------------------------------------------------------------------

    def embedded(self, x: Any) -> Any:
        """x of a `step` as the layers begin with it."""
        if self.spec["arch"] in ("gemma2", "gemma3"):
            return x * np.float32(math.sqrt(self.spec["dim"]))
        return x * np.float32(78.38367176906169) if self.spec["arch"] == "grok1" else x

    def logits(self, rows: Any) -> Any:
        logits = self._product("head", self._norm(rows, "final_norm"))
        if self.spec["arch"] == "gemma2":
            return np.float32(30) * np.tanh(logits / np.float32(30))
        return logits * np.float32(0.5773502691896257) if self.spec["arch"] == "grok1" else logits

    def finished(self, half: int, total: Any) -> Any:
        """What is added to x after half `half`, of the sum over all nodes."""
        if self.spec["arch"] not in _OUT_NORMS:
            return total
        gain = self._gain(f"layers.{half // 2}.{_OUT_NORMS[self.spec['arch']][half % 2]}")
        whole, unit = _whole(total, self._router_bits())
        mean = np.square(whole).sum(axis=1) * np.square(unit) / total.shape[1]
        scale = (1 / np.sqrt(mean + self.spec["norm_eps"])).astype(np.float32)
        return total * scale[:, None] * gain

    def _attends_to_all(self, i: int) -> bool:
        every: int = self.spec["full_every"]
        return every > 0 and i % every == every - 1

    def attention(self, i: int, x: Any, spans: list[tuple[int, int, Any]], positions: Any) -> Any:
        """The partial sum of layer `i`'s attention over rows x, before their norm; `spans`: start, count, pages."""
        cos, sin = self._angles(i, positions)
        x = self._norm(x, f"layers.{i}.attention_norm")
        shape = (len(x), -1, self.spec["head_dim"])
        q, k, v = (self._projected(i, letter, x).reshape(shape) for letter in "qkv")
        q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
        out = np.empty_like(q)
        row = 0
        for start, count, pages in spans:
            rows, end = slice(row, row + count), start + count
            places = (pages[:, None] * PAGE + np.arange(PAGE)).ravel()[:end]
            for which, new in enumerate((k, v)):
                self.cache[i, places[start:], which] = np.clip(new[rows], -self.kv_most, self.kv_most)
            keys, values = self.cache[i, places].astype(np.float32).transpose(1, 2, 0, 3)
            ago = np.arange(start, end)[:, None] - np.arange(end)
            window = None if self._attends_to_all(i) else self.spec["window"]
            hidden = (ago < 0) | (ago >= (end if window is None else window))
            for head, kv in enumerate(self.kv_of_head):
                scores = (q[rows, head] * np.float32((self.spec["query_scalar"] or shape[2]) ** -0.5)) @ keys[kv].T
                if self.spec["arch"] in _SOFTCAP:
                    cap = np.float32(_SOFTCAP[self.spec["arch"]])
                    scores = cap * np.tanh(scores / cap)
                scores[hidden] = -np.inf
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                weights /= weights.sum(axis=-1, keepdims=True, dtype=np.float32)
                out[rows, head] = weights @ values[kv]
            row += count
        return self._product(f"layers.{i}.attention.o", out.reshape(len(x), -1), self.segments)

    def feed_forward(self, i: int, x: Any) -> Any:
        """The partial sum of layer `i`'s feed-forward network, or of its experts, over rows x, before their norm."""
        layer = f"layers.{i}."
        if not self.spec["n_experts"]:
            hidden = self._gated(f"{layer}ffn.", self._norm(x, f"{layer}ffn_norm"))
            return self._product(f"{layer}ffn.down", hidden, self.segments)
        norm = f"{layer}{'moe_norm' if self.spec['arch'] == 'grok1' else 'ffn_norm'}"
        chosen, weights = self._route(x, f"{layer}router", self._gain(norm))
        normed = self._norm(x, norm)
        sums = np.zeros((self.segments, *x.shape), np.float32)
        for expert in range(self.spec["n_experts"]):
            rows, which = np.nonzero(chosen == expert)
            if len(rows):
                name = f"{layer}experts.{expert}."
                hidden = self._gated(name, normed[rows]) * weights[rows, which][:, None]
                for total, part in zip(sums, self._segments(f"{name}down", hidden, self.segments), strict=True):
                    total[rows] += part
        return _tree(list(sums))

    # --- §8 -----------------------------------------------------------------------------------------------------------

    def _projected(self, i: int, letter: str, x: Any) -> Any:
        name = f"layers.{i}.attention.{letter}"
        rows = self._product(name, x)
        if f"{name}_bias" in self.weights:
            rows = rows + self._gain(f"{name}_bias")
        if f"{name}_norm" in self.weights:
            heads = rows.reshape(-1, self.spec["head_dim"])
            rows = self._norm(heads, f"{name}_norm").reshape(rows.shape)
        return rows

    def _gated(self, name: str, x: Any) -> Any:
        gate, up = self._product(f"{name}gate", x), self._product(f"{name}up", x)
        steep = gate
        if self.spec["activation"] == "gelu":
            steep = np.float32((8 / math.pi) ** 0.5) * (gate + np.float32(0.044715) * gate * gate * gate)
        with np.errstate(over="ignore"):
            return gate / (1 + np.exp(-steep)) * up

    def _router_bits(self) -> int:
        return (53 - math.ceil(math.log2(self.spec["dim"]))) // 2

    def _route(self, x: Any, router: str, gain: Any) -> tuple[Any, Any]:
        """Chosen experts (T, k), ascending, and their weights."""
        rows, row_units = _whole(values_of(*self.weights[router]), self._router_bits())
        values, units = _whole(x * gain, self._router_bits())
        logits = values @ rows.T * row_units * units[:, None]
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.spec["n_active_experts"]]
        chosen = np.sort(best, axis=1)
        logits /= np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=1, keepdims=True) + self.spec["norm_eps"])
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights = np.take_along_axis(shares, chosen, axis=1)
        weights /= (weights if self.spec["norm_topk"] else shares).sum(axis=1, keepdims=True)
        return chosen, weights.astype(np.float32)

    def _gain(self, name: str) -> Any:
        return values_of(*self.weights[name])[0]

    def _norm(self, x: Any, name: str) -> Any:
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean + np.float32(self.spec["norm_eps"])) * self._gain(name)

    def _product(self, name: str, x: Any, segments: int = 1) -> Any:
        return _tree(self._segments(name, x, segments))

    def _segments(self, name: str, x: Any, segments: int) -> list[Any]:
        """x (T, columns) times a tensor, the sums of each segment of its columns apart."""
        code, data, own = self.weights[name]
        if BLOCK[code][0] == 1:
            weights = values_of(code, data, own)
            cut = weights.shape[1] // segments
            return [x[:, i * cut :][:, :cut] @ weights[:, i * cut :][:, :cut].T for i in range(segments)]
        q, d, m = blocks_of(code, data, own)
        xq, xd = to_q80(x)
        xq, xd = xq.reshape(len(x), *q.shape[1:]), xd.astype("<f2").astype(np.float32)
        xd = np.repeat(xd, q.shape[1] // xd.shape[1], axis=1)
        dots = np.einsum("tbj,rbj->btr", xq.astype(np.int32), q.astype(np.int32)).astype(np.float32)
        terms = dots * (xd.T[:, :, None] * d.T[:, None, :])
        if m is not None:
            sums = xd * xq.sum(axis=2).astype(np.float32)
            terms = terms + m.T[:, None, :] * sums.T[:, :, None]
        parts = []
        for segment in terms.reshape(segments, -1, *terms.shape[1:]):
            total = segment[0]
            for term in segment[1:]:
                total = total + term
            parts.append(total)
        return parts

    def _angles(self, i: int, positions: Any) -> tuple[Any, Any]:
        """cos and sin of each pair at each position, in layer `i`."""
        rope, head_dim = self.spec["rope"], self.spec["head_dim"]
        if self.spec["window_rope"] is not None and not self._attends_to_all(i):
            rope = self.spec["window_rope"]
        f = rope["theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        if rope["factors"]:
            f = f / np.array(rope["factors"])
        elif (scaling := rope["scaling"]) is not None:
            low, high, length = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "original_seq_len"))
            w = 2 * math.pi / f
            s = (length / w - low) / (high - low)
            between = (1 - s) * f / scaling["factor"] + s * f
            f = np.where(w > length / low, f / scaling["factor"], np.where(w < length / high, f, between))
        angles = positions[:, None] * f
        return np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        interleaved = self.spec["rope"]["layout"] == "interleaved"
        first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
        a, b = x[..., first], x[..., second]
        turned = np.empty_like(x)
        turned[..., first], turned[..., second] = a * cos - b * sin, a * sin + b * cos
        return turned


def _tree(parts: list[Any]) -> Any:
    while len(parts) > 1:
        parts = [parts[i] + parts[i + 1] if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]


def _whole(rows: Any, bits: int) -> tuple[Any, Any]:
    """Rows as whole numbers of `bits` bits, in double, and each row's unit."""
    exponents = np.frexp(np.abs(rows).max(axis=1))[1] - bits
    return np.rint(np.ldexp(rows.astype(np.float64), -exponents[:, None])), np.ldexp(1.0, exponents)
