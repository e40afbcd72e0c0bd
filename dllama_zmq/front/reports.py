"""Answers to `status_request`: from a new report of the engine, or during a long step from its last one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from dllama_zmq.bus.client_messages import Status
from dllama_zmq.front.request import Request

_REPORT_S = 0.05
"""Seconds that an answer waits for the engine's report; then the last one is used."""
_MAX_SHOWN = 64


class Reports:
    """The clients that asked, and the engine's last report. The front adds its requests."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._askers: list[tuple[bytes, int]] = []
        self._due = 0.0
        self._is_asked = False

    def ask(self, client: bytes, request_id: int) -> bool:
        """Record a client's question. Returns whether to ask the engine for a report; one is open at a time."""
        if not self._askers:
            self._due = time.monotonic() + _REPORT_S
        self._askers.append((client, request_id))
        asks, self._is_asked = not self._is_asked, True
        return asks

    def take(self, status: Status) -> None:
        """Store a report of the engine."""
        self._status, self._due, self._is_asked = status, 0.0, False

    @property
    def wait_s(self) -> float | None:
        """Seconds until an answer is due; None if no client has asked."""
        return max(0.0, self._due - time.monotonic()) if self._askers else None

    def answers(self, running: Sequence[Request], waiting: Sequence[Request]) -> list[tuple[bytes, Status]]:
        """The answers that are due, each with its client."""
        now = time.monotonic()
        if not self._askers or self._status is None or now < self._due:
            return []
        requests = [request.status(now) for request in [*running, *waiting][:_MAX_SHOWN]]
        status = msgspec.structs.replace(self._status, active=len(running), queued=len(waiting), requests=requests)
        answers = [(client, msgspec.structs.replace(status, id=request_id)) for client, request_id in self._askers]
        self._askers.clear()
        return answers
