"""What /metrics tells of requests: counted here as they go, and of nodes: read from the last status. Knows no route."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from dllama_zmq.gateway.answering import Tally

_WAITS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_STEPS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(slots=True)
class Outcome:
    """How the answers of a request ended."""

    reasons: list[str] = field(default_factory=list)


class Metrics:
    """The counters of one API server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("dllama_requests", "Answers, by how they ended", ["reason"], registry=registry)
        self._running = Gauge(
            "dllama_requests_open", "Requests of this API server that have not ended", registry=registry
        )
        self._prompt = Counter("dllama_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached = Counter(
            "dllama_cached_prompt_tokens", "Of these, tokens that were in the KV cache", registry=registry
        )
        self._predicted = Counter("dllama_predicted_tokens", "Tokens of answers", registry=registry)
        self._prompt_s = Counter(
            "dllama_prompt_seconds", "Seconds from the start of prompts to first tokens", registry=registry
        )
        self._predicted_s = Counter(
            "dllama_predicted_seconds", "Seconds from first tokens to last ones", registry=registry
        )
        self._first = Histogram(
            "dllama_time_to_first_token_seconds",
            "From a request to its first token",
            buckets=_WAITS_S,
            registry=registry,
        )
        self._between = Histogram(
            "dllama_time_between_tokens_seconds", "From a token of a request to its next", buckets=_STEPS_S,
            registry=registry,
        )  # fmt: skip

    @contextmanager
    def request(self, tally: Tally) -> Iterator[Outcome]:
        """Count a request, which lasts for the block."""
        outcome, failed = Outcome(), "cancelled"
        self._running.inc()
        try:
            yield outcome
            failed = ""
        except Exception:
            failed = "error"
            raise
        finally:
            self._running.dec()
            for reason in [*outcome.reasons, *([failed] if failed else [])]:
                self._requests.labels(reason).inc()
            self._prompt.inc(tally.n_prompt)
            self._cached.inc(tally.n_cached)
            self._predicted.inc(tally.n_tokens)
            if tally.first_token:
                self._prompt_s.inc(tally.first_token - tally.began)
                self._predicted_s.inc(tally.last_token - tally.first_token)

    def token(self, tally: Tally) -> None:
        """Count a token of a request."""
        now = time.monotonic()
        tally.n_tokens += 1
        if not tally.first_token:
            tally.first_token = now
            self._first.observe(now - tally.came)
        else:
            self._between.observe(now - tally.last_token)
        tally.last_token = now
