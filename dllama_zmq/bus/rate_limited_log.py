"""Rate-limited log lines about peers that break the rules."""

from __future__ import annotations

import logging
import threading
import time


class RateLimitedLog:
    """Warnings about bad peers: at most one a second, so a flood of messages does not flood the log."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = 0.0
        self._n_dropped = 0

    def warning(self, text: str, *values: object) -> None:
        """Log `text % values`, or drop it; the next line says how many were dropped before it."""
        now = time.monotonic()
        if now < self._next:
            self._n_dropped += 1
            return
        self._logger.warning(text + (f" ({self._n_dropped} more like it)" if self._n_dropped else ""), *values)
        self._next, self._n_dropped = now + 1.0, 0


_MAX_ADDRESSES = 256


class Refusals:
    """Counts refused connections by address, and logs the 1st, 2nd, 4th, 8th … of each. For any thread."""

    def __init__(self, logger: logging.Logger) -> None:
        self._log = RateLimitedLog(logger)
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, address: str, why: str) -> None:
        """Count one more refusal of `address`."""
        with self._lock:
            count = self._counts[address] = self._counts.pop(address, 0) + 1
            if len(self._counts) > _MAX_ADDRESSES:
                del self._counts[next(iter(self._counts))]  # the address that was refused longest ago
            if count & (count - 1) == 0:
                times = "" if count == 1 else f" ({count} times so far)"
                self._log.warning("refused a connection from %s%s: %s", address or "an unknown address", times, why)

    def counts(self) -> dict[str, int]:
        """The number of refusals of each of the last 256 addresses."""
        with self._lock:
            return dict(self._counts)
