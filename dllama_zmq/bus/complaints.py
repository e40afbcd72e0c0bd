"""What peers do wrong, in the log."""

from __future__ import annotations

import logging
import time


class Complaints:
    """Log lines about bad peers: at most one a second, so that a flood of messages is no flood in the log."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = 0.0
        self._unsaid = 0

    def say(self, text: str, *values: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._unsaid += 1
            return
        self._logger.warning(text + (f" ({self._unsaid} more like it)" if self._unsaid else ""), *values)
        self._next, self._unsaid = now + 1.0, 0
