"""Statistics of an answer, for prompt and prediction, named as in distributed-llama.

G is the wall clock in ms, I computing on the root, T waiting for the other nodes; S and R are kB that the root sent
and received, over all workers. 1 kB is 1000 bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from dllama_zmq.bus.client_messages import Prefill, StepStats, TokenText
from dllama_zmq.bus.slowest import StepSums
from dllama_zmq.reporting import plural

_WORDS = "ms in all (G), computing (I), waiting for other nodes (T); kB sent (S) and received (R) by the root"


class Stats:
    """Collects an answer's figures. line: prints each step's figures as they come; None: does not."""

    def __init__(self, line: Callable[[str], None] | None = None) -> None:
        self._line = line
        self._explained = False
        self._n_tokens = 0
        self._prompt = StepSums()
        self._prediction = StepSums()

    def prompt(self, step: Prefill) -> None:
        """Add one step of the prompt."""
        self._prompt.add(step.n_tokens, step.figures)
        self._say(step.figures, f"prompt {step.done}/{step.total}")

    def token(self, piece: TokenText) -> None:
        """Add one generated token; the first one has no step of its own."""
        self._n_tokens += 1
        if piece.figures is not None:
            self._prediction.add(1, piece.figures)
            self._say(piece.figures, repr(piece.text))

    def averages(self) -> dict[str, dict[str, float]]:
        """Both phases, per token."""
        return {"prompt": _averages(self._prompt), "prediction": _averages(self._prediction)}

    def sentence(self) -> str:
        """The speed, in one line."""
        prompt = _speed(self._prompt.tokens, self._prompt)
        return f"{_speed(self._n_tokens, self._prediction)}; prompt {prompt}"

    def print_table(self, n_nodes: int) -> None:
        """Print both phases per token, the meaning of the columns, and the node of `n_nodes` that the others waited
        for.
        """
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for column in ("tokens", "tokens/s", "ms", "computing", "waiting", "sent", "received"):
            table.add_column(column, justify="right")
        for name, row in self.averages().items():
            table.add_row(
                name,
                f"{row['tokens']:.0f}",
                f"{row['tokens_per_s']:.2f}",
                f"{row['g_ms']:.2f}",
                f"{row['i_ms']:.2f}",
                f"{row['t_ms']:.2f}",
                f"{row['s_kb']:.1f} kB",
                f"{row['r_kb']:.1f} kB",
            )
        console = Console(stderr=True, highlight=False)
        console.print(table)
        console.print("per token, at the root: ms in all, computing, waiting for others; payload bytes")
        for name, sums in (("the prompt", self._prompt), ("the prediction", self._prediction)):
            if one := sums.slowest(n_nodes):
                console.print(f"in {name} the others waited mostly for {one.name} ({one.share:.0%} of the waiting)")

    def _say(self, figures: StepStats, what: str) -> None:
        if self._line is None:
            return
        if not self._explained:
            self._line(_WORDS)
            self._explained = True
        self._line(f"{_line(figures)}  {what}")


def _speed(n_tokens: int, sums: StepSums) -> str:
    speed = f", {sums.tokens_per_s():.1f} tokens/s" if sums.tokens else ""
    return f"{plural(n_tokens, 'token')}{speed}"


def _line(figures: StepStats) -> str:
    compute_ms = (figures.wall_s - figures.wait_s) * 1e3
    return (
        f"G {figures.wall_s * 1e3:7.2f}  I {compute_ms:7.2f}  T {figures.wait_s * 1e3:7.2f}  "
        f"S {figures.sent_bytes / 1e3:7.1f}  R {figures.received_bytes / 1e3:7.1f}"
    )


def _averages(sums: StepSums) -> dict[str, float]:
    """Figures per token, in milliseconds and kB."""
    n, total = max(1, sums.tokens), sums.figures
    return {
        "tokens": sums.tokens,
        "tokens_per_s": round(sums.tokens_per_s(), 2),
        "g_ms": round(total.wall_s / n * 1e3, 3),
        "i_ms": round((total.wall_s - total.wait_s) / n * 1e3, 3),
        "t_ms": round(total.wait_s / n * 1e3, 3),
        "s_kb": round(total.sent_bytes / n / 1e3, 3),
        "r_kb": round(total.received_bytes / n / 1e3, 3),
    }
