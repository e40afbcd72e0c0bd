"""How many rows of prompts a step may have beside rows that decode, from what steps have taken. Knows no clock.

A stream's next token waits for the whole step, so a step with a prompt's rows may take _TIMES as long as one without.
How many rows that is differs by machine and model: where reading the weights takes the time of a step, rows cost almost
nothing; where multiplying does, each row costs as much as the one before (tools/BENCHMARKS.md has both).
"""

from __future__ import annotations

from collections import deque
from statistics import median

_TIMES = 2.25  # the rest up to 3, which a stream may have to wait, is for the steps that take longer than the others
_LEAST_ROWS = 4  # a prompt goes on, whatever it costs; and fewer rows say little of what a row costs
_FIRST_ROWS = 8  # nothing is known yet
_KEPT = 9


class Pace:
    """Medians of the last steps: of those that only decode, by their rows, and of what each further row has added."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._decoding_s: dict[int, deque[float]] = {}
        self._row_s: deque[float] = deque(maxlen=_KEPT)

    def add(self, n_decoding: int, n_prompt_rows: int, seconds: float) -> None:
        """A step has taken `seconds`."""
        if not n_prompt_rows:
            self._decoding_s.setdefault(n_decoding, deque(maxlen=_KEPT)).append(seconds)
        elif n_prompt_rows >= _LEAST_ROWS and (alone_s := self._alone_s(n_decoding)) is not None:
            self._row_s.append(max(0.0, seconds - alone_s) / n_prompt_rows)

    def rows(self, n_decoding: int) -> int:
        """The rows that prompts may have in all beside `n_decoding` rows."""
        alone_s = self._alone_s(n_decoding)
        if alone_s is None or not self._row_s:
            return _FIRST_ROWS
        row_s, allowed_s = median(self._row_s), (_TIMES - 1) * alone_s
        if allowed_s >= self._most_rows * row_s:
            return self._most_rows
        return max(_LEAST_ROWS, int(allowed_s / row_s))

    def _alone_s(self, n_decoding: int) -> float | None:
        """Seconds of a step of `n_decoding` rows: those of the nearest number that is known, rather of a lower one."""
        if not n_decoding:
            return 0.0
        if not self._decoding_s:
            return None
        nearest = min(self._decoding_s, key=lambda n: (n > n_decoding, abs(n - n_decoding)))
        return median(self._decoding_s[nearest])
