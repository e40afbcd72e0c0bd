"""Choose how many prompt rows a step may add to its decoding rows, from the seconds of earlier steps. Knows no clock.

A stream's next token waits for the whole step, so a step with a prompt's rows may take _TIMES as long as one without.
The number of rows differs by machine and model: if reading the weights bounds a step, more rows cost almost nothing; if
multiplying does, every row costs the same (tools/BENCHMARKS.md has both).
"""

from __future__ import annotations

from collections import deque
from statistics import median

_TIMES = 2.25  # a stream may wait 3 times as long; the rest is for steps that take longer than the median
_MIN_ROWS = 4  # a prompt always advances; and fewer rows measure the cost of a row badly
_FIRST_ROWS = 8  # nothing measured yet
_KEPT = 9


class Pace:
    """Medians over the last steps: seconds of steps that only decode, by their rows, and seconds per added row."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._decoding_s: dict[int, deque[float]] = {}
        self._row_s: deque[float] = deque(maxlen=_KEPT)

    def add(self, n_decoding: int, n_prompt_rows: int, seconds: float) -> None:
        """Record the seconds of a step."""
        if not n_prompt_rows:
            self._decoding_s.setdefault(n_decoding, deque(maxlen=_KEPT)).append(seconds)
        elif n_prompt_rows >= _MIN_ROWS and (alone_s := self._alone_s(n_decoding)) is not None:
            self._row_s.append(max(0.0, seconds - alone_s) / n_prompt_rows)

    def rows(self, n_decoding: int) -> int:
        """The number of prompt rows beside `n_decoding` decoding rows."""
        alone_s = self._alone_s(n_decoding)
        if alone_s is None or not self._row_s:
            return _FIRST_ROWS
        row_s, allowed_s = median(self._row_s), (_TIMES - 1) * alone_s
        if allowed_s >= self._most_rows * row_s:
            return self._most_rows
        return max(_MIN_ROWS, int(allowed_s / row_s))

    def _alone_s(self, n_decoding: int) -> float | None:
        """Seconds of a step of `n_decoding` rows alone, taken from the nearest measured number, preferably a lower
        one."""
        if not n_decoding:
            return 0.0
        if not self._decoding_s:
            return None
        nearest = min(self._decoding_s, key=lambda n: (n > n_decoding, abs(n - n_decoding)))
        return median(self._decoding_s[nearest])
