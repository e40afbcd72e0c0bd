"""The requests' part of /metrics, counted as they run. Knows no route; `cluster_metrics.py` has the cluster's part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct, field
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from dllama_zmq.bus.client_messages import Status
from dllama_zmq.gateway.cluster_metrics import cluster_metrics

_WAITS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_STEPS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Tally(Struct):
    """The tokens and times of one request so far. Times are of time.monotonic()."""

    came: float = field(default_factory=time.monotonic)
    began: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    n_prompt: int = 0
    n_cached: int = 0
    n_tokens: int = 0


class Metrics(Collector):
    """The counters of one API server."""

    def __init__(self) -> None:
        # a second series for each counter, which nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._status: Status | None = None
        registry.register(self)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dllama_{name}", text, labels, registry=registry)

        self._ended = counter("requests", "Answers of this API server, by how they ended", "reason")
        self._open = Gauge("dllama_requests_open", "Requests of this API server that have not ended", registry=registry)
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._cached = counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache")
        self._prompt_s = counter("prompt_seconds", "From the start of prompts to their answers' first tokens")
        self._predicted = counter("predicted_tokens", "Tokens of answers")
        self._predicted_s = counter("predicted_seconds", "From the first tokens of answers to their last")
        self._responses = counter("http_responses", "Responses, by route and status", "route", "status")

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"dllama_{name}", text, buckets=buckets, registry=registry)

        self._first = histogram("time_to_first_token_seconds", "From a request to its first token", _WAITS_S)
        self._between = histogram("time_between_tokens_seconds", "From a token of an answer to its next", _STEPS_S)
        self._whole = histogram("request_seconds", "From a request to its end", _WAITS_S)

    @contextmanager
    def request(self, tally: Tally) -> Iterator[list[str]]:
        """Count a request for the duration of the block, and its answers by the reasons that the block appends."""
        reasons: list[str] = []
        failed = "cancelled"
        self._open.inc()
        try:
            yield reasons
            failed = ""
        except Exception:
            failed = "error"
            raise
        finally:
            self._open.dec()
            for reason in [*reasons, *([failed] if failed else [])]:
                self._ended.labels(reason).inc()
            self._prompt.inc(tally.n_prompt)
            self._cached.inc(tally.n_cached)
            self._predicted.inc(tally.n_tokens)
            self._whole.observe(time.monotonic() - tally.came)
            if tally.first_token:
                self._prompt_s.inc(tally.first_token - tally.began)
                self._predicted_s.inc(tally.last_token - tally.first_token)

    def token(self, tally: Tally) -> None:
        """Count a generated token of a request."""
        now = time.monotonic()
        tally.n_tokens += 1
        if not tally.first_token:
            tally.first_token = now
            self._first.observe(now - tally.came)
        else:
            self._between.observe(now - tally.last_token)
        tally.last_token = now

    def response(self, route: str, status: int) -> None:
        """Count a response."""
        self._responses.labels(route, str(status)).inc()

    def text(self, status: Status | None) -> bytes:
        """All metrics in Prometheus' form, with the cluster's status (None: not known)."""
        self._status = status
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The cluster's part: the interface of a Collector of prometheus_client."""
        return iter(()) if self._status is None else cluster_metrics(self._status)
