"""Figures of an answer, as distributed-llama prints them: G, I, T in ms, S and R in kB, prompt and prediction apart.

G is wall clock, I computing on the root, T waiting for the others; S and R are what the root sent and received, all
workers together. 1 kB is 1000 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from dllama_zmq.bus.client_messages import Figures, Piece, Prefill
from dllama_zmq.bus.slowest import slowest
from dllama_zmq.cli.show import note


@dataclass(slots=True)
class _Sums:
    """Sums over the steps of one phase."""

    tokens: int = 0
    wall_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    waited_for_s: dict[str, float] = field(default_factory=dict)

    def add(self, n_tokens: int, figures: Figures) -> None:
        self.tokens += n_tokens
        self.wall_s += figures.wall_s
        self.wait_s += figures.wait_s
        self.sent_bytes += figures.sent_bytes
        self.received_bytes += figures.received_bytes
        for name, seconds in figures.waited_for_s.items():
            self.waited_for_s[name] = self.waited_for_s.get(name, 0.0) + seconds

    def tokens_per_s(self) -> float:
        """0 where nothing was measured."""
        return self.tokens / self.wall_s if self.wall_s else 0.0

    def averages(self) -> dict[str, float]:
        """Per token; milliseconds and kB."""
        n = max(1, self.tokens)
        return {
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens_per_s(), 2),
            "g_ms": round(self.wall_s / n * 1e3, 3),
            "i_ms": round((self.wall_s - self.wait_s) / n * 1e3, 3),
            "t_ms": round(self.wait_s / n * 1e3, 3),
            "s_kb": round(self.sent_bytes / n / 1e3, 3),
            "r_kb": round(self.received_bytes / n / 1e3, 3),
        }


class Stats:
    """Collects an answer's figures; prints a line for each step where `per_token`."""

    def __init__(self, per_token: bool) -> None:
        self._per_token = per_token
        self._explained = False
        self._n_tokens = 0
        self._prompt = _Sums()
        self._prediction = _Sums()

    def prompt(self, step: Prefill) -> None:
        """One step of the prompt."""
        self._prompt.add(step.n_tokens, step.figures)
        self._say(step.figures, f"prompt {step.done}/{step.total}")

    def token(self, piece: Piece) -> None:
        """One generated token; the first has no step of its own."""
        self._n_tokens += 1
        if piece.figures is not None:
            self._prediction.add(1, piece.figures)
            self._say(piece.figures, repr(piece.text))

    def averages(self) -> dict[str, dict[str, float]]:
        """Both phases, per token."""
        return {"prompt": self._prompt.averages(), "prediction": self._prediction.averages()}

    def sentence(self) -> str:
        """How fast it was, in one line."""
        prompt = _speed(self._prompt.tokens, self._prompt)
        return f"{_speed(self._n_tokens, self._prediction)}; prompt {prompt}"

    def print_table(self, n_nodes: int) -> None:
        """Both phases, per token, what the columns mean, and for whom of `n_nodes` the others waited."""
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for column in ("tokens", "tokens/s", "ms", "computing", "waiting", "sent", "received"):
            table.add_column(column, justify="right")
        for name, row in self.averages().items():
            table.add_row(
                name, f"{row['tokens']:.0f}", f"{row['tokens_per_s']:.2f}", f"{row['g_ms']:.2f}", f"{row['i_ms']:.2f}",
                f"{row['t_ms']:.2f}", f"{row['s_kb']:.1f} kB", f"{row['r_kb']:.1f} kB",
            )  # fmt: skip
        console = Console(stderr=True, highlight=False)
        console.print(table)
        console.print("per token, at the root: ms in all, computing, waiting for others; payload bytes")
        for name, sums in (("the prompt", self._prompt), ("the prediction", self._prediction)):
            if one := slowest(sums.waited_for_s, sums.wall_s, n_nodes):
                console.print(f"in {name} the others waited mostly for {one.name} ({one.share:.0%} of the waiting)")

    def _say(self, figures: Figures, what: str) -> None:
        if not self._per_token:
            return
        if not self._explained:
            note("ms in all (G), computing (I), waiting for other nodes (T); kB sent (S) and received (R) by the root")
            self._explained = True
        note(f"{_line(figures)}  {what}")


def _speed(n_tokens: int, sums: _Sums) -> str:
    speed = f", {sums.tokens_per_s():.1f} tokens/s" if sums.tokens else ""
    return f"{n_tokens} {'token' if n_tokens == 1 else 'tokens'}{speed}"


def _line(figures: Figures) -> str:
    compute_ms = (figures.wall_s - figures.wait_s) * 1e3
    return (
        f"G {figures.wall_s * 1e3:7.2f}  I {compute_ms:7.2f}  T {figures.wait_s * 1e3:7.2f}  "
        f"S {figures.sent_bytes / 1e3:7.1f}  R {figures.received_bytes / 1e3:7.1f}"
    )
