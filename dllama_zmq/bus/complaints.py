"""Rate-limited log lines about peers that break the rules."""

from __future__ import annotations

import logging
import threading
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


_MOST_ADDRESSES = 256


class Refusals:
    """Counts refused connections by address, and logs the 1st, 2nd, 4th, 8th … of each. For any thread."""

    def __init__(self, logger: logging.Logger) -> None:
        self._complaints = Complaints(logger)
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, address: str, why: str) -> None:
        """One more from `address`."""
        with self._lock:
            count = self._counts[address] = self._counts.pop(address, 0) + 1
            if len(self._counts) > _MOST_ADDRESSES:
                del self._counts[next(iter(self._counts))]  # who was refused longest ago
            if count & (count - 1) == 0:
                times = "" if count == 1 else f" ({count} times so far)"
                self._complaints.say("refused a connection from %s%s: %s", address or "an unknown address", times, why)

    def counts(self) -> dict[str, int]:
        """How often each address was refused; of the last 256 addresses."""
        with self._lock:
            return dict(self._counts)
