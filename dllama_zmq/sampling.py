"""How tokens are chosen, as a request says it. Knows no array: commands check their flags with it."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.errors import RequestError

_FIRST_ASKED = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in.

    Applied in this order: temperature, the `top_k` most likely, the fewest of those that hold `top_p` of their
    probability (arXiv:1904.09751).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def check(self) -> None:
        """Raise RequestError, naming the value and its legal range."""
        if self.temperature != 0 and not 0.001 <= self.temperature <= 100:  # less, and logit / temperature overflows
            raise RequestError(f"temperature is {self.temperature}; expected 0 (greedy), or 0.001 to 100")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; expected more than 0 and at most 1 (1: off)")
        if not 0 <= self.top_k <= 1 << 24:
            raise RequestError(f"top_k is {self.top_k}; expected 0 (off) or a number of tokens")
        if not 0 <= self.seed < 1 << 63:
            raise RequestError(f"seed is {self.seed}; expected 0 to 2^63 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def first_k(self) -> int:
        """How many candidates to ask each node for at first."""
        if self.greedy:
            return 1
        return min(self.top_k, _FIRST_ASKED) if self.top_k else _FIRST_ASKED
