"""Figures of an answer, as distributed-llama prints them: G, I, T in ms, S and R in kB, prompt and prediction apart.

G is wall clock, I computing on the root, T waiting for the others; S and R are what the root sent and received, all
workers together. 1 kB is 1024 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.bus.client_messages import Figures, Piece, Prefill
from dllama_zmq.cli.show import note


@dataclass(slots=True)
class _Sums:
    """Sums over the steps of one phase."""

    tokens: int = 0
    wall_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0

    def add(self, n_tokens: int, figures: Figures) -> None:
        self.tokens += n_tokens
        self.wall_s += figures.wall_s
        self.wait_s += figures.wait_s
        self.sent_bytes += figures.sent_bytes
        self.received_bytes += figures.received_bytes

    def averages(self) -> dict[str, float]:
        """Per token; milliseconds and kB."""
        n = max(1, self.tokens)
        return {
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens / self.wall_s, 2) if self.wall_s else 0.0,
            "g_ms": round(self.wall_s / n * 1e3, 3),
            "i_ms": round((self.wall_s - self.wait_s) / n * 1e3, 3),
            "t_ms": round(self.wait_s / n * 1e3, 3),
            "s_kb": round(self.sent_bytes / n / 1024, 3),
            "r_kb": round(self.received_bytes / n / 1024, 3),
        }


class Stats:
    """Collects an answer's figures; prints a line for each step where `per_token`."""

    def __init__(self, per_token: bool) -> None:
        self._per_token = per_token
        self._prompt = _Sums()
        self._prediction = _Sums()

    def prompt(self, step: Prefill) -> None:
        """One step of the prompt."""
        self._prompt.add(step.n_tokens, step.figures)
        if self._per_token:
            note(f"{_line(step.figures)}  prompt {step.done}/{step.total}")

    def token(self, piece: Piece) -> None:
        """One generated token; the first has no step of its own."""
        if piece.figures is None:
            return
        self._prediction.add(1, piece.figures)
        if self._per_token:
            note(f"{_line(piece.figures)}  {piece.text!r}")

    def averages(self) -> dict[str, dict[str, float]]:
        """Both phases, per token."""
        return {"prompt": self._prompt.averages(), "prediction": self._prediction.averages()}

    def print_averages(self) -> None:
        """The closing lines."""
        for phase, row in self.averages().items():
            note(
                f"{phase:>10}: {row['tokens']:.0f} tokens, {row['tokens_per_s']:.2f} tokens/s; average per token "
                f"G {row['g_ms']:.2f} ms  I {row['i_ms']:.2f} ms  T {row['t_ms']:.2f} ms  "
                f"S {row['s_kb']:.1f} kB  R {row['r_kb']:.1f} kB"
            )


def _line(figures: Figures) -> str:
    compute_ms = (figures.wall_s - figures.wait_s) * 1e3
    return (
        f"G {figures.wall_s * 1e3:7.2f} ms  I {compute_ms:7.2f} ms  T {figures.wait_s * 1e3:7.2f} ms  "
        f"S {figures.sent_bytes / 1024:7.1f} kB  R {figures.received_bytes / 1024:7.1f} kB"
    )
