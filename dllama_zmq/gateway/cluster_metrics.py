"""The cluster's part of /metrics: the numbers of its status in Prometheus' form. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dllama_zmq.bus.client_messages import Status

_Rows = Iterable[tuple[tuple[str, ...], float]]


def cluster_metrics(status: Status) -> Iterator[Metric]:
    """Metrics of the whole cluster, for all its clients. Those of recent steps cover the last 10 to 20 s."""
    kv = status.kv
    yield _gauge("up", "Whether every node is ready", status.state == "ready")
    yield _gauge("requests_running", "Requests that are being answered", status.active)
    yield _gauge("requests_waiting", "Requests that wait for their turn", status.queued)
    yield _gauge("kv_pages", f"Pages of the KV cache, of {kv.page_positions} positions each", kv.pages)
    yield _gauge("kv_pages_used", "Pages in use by requests", kv.in_use)
    yield _gauge("kv_pages_kept", "Pages kept for later prompts with the same beginning", kv.cached)
    yield _gauge("kv_used_ratio", "Share of the pages that requests use", kv.in_use / max(1, kv.pages))
    yield _counter("prefix_queries", "Tokens of all prompts", kv.prompt_tokens)
    yield _counter("prefix_hits", "Prompt tokens found in the prefix cache", kv.cached_tokens)
    yield _counter("preemptions", "Times that a request gave up its pages for an older one", kv.preemptions)
    yield _counters("steps", "Steps that were run", ["phase"], _by_name(status.steps))
    yield _counters("step_tokens", "Tokens that were evaluated", ["phase"], _by_name(status.tokens))
    recent = status.recent.items()
    speeds = [((phase,), times.tokens / times.wall_s) for phase, times in recent if times.wall_s]
    yield _gauges("tokens_per_second", "Tokens evaluated per second of the last steps", ["phase"], speeds)
    seconds = [((phase,), times.wall_s / times.steps) for phase, times in recent if times.steps]
    yield _gauges("step_seconds", "Seconds of one of the last steps", ["phase"], seconds)
    yield from _nodes(status)


def _nodes(status: Status) -> Iterator[Metric]:
    names = {
        "compute": ("compute_s", "Seconds of computing in one of the last steps"),
        "wait": ("wait_s", "Seconds of waiting for others in one of the last steps"),
        "waited_for": ("waited_for_s", "Seconds that the others waited for this node in one of the last steps"),
    }
    for name, (field, text) in names.items():
        rows = [
            ((node, phase), getattr(times, field) / steps.steps)
            for phase, steps in status.recent.items()
            for node, times in steps.nodes.items()
            if steps.steps
        ]
        yield _gauges(f"node_{name}_seconds", text, ["node", "phase"], rows)
    traffic = [((row.node, row.direction, row.phase, row.kind), row.wire_bytes) for row in status.traffic]
    labels = ["node", "direction", "phase", "kind"]
    yield _counters("node_bytes", "Bytes between the root and a worker, counted by the root", labels, traffic)
    nodes = status.nodes
    yield _gauges("node_up", "Whether a node is ready", ["node"], [((n.name,), n.state == "ready") for n in nodes])
    trips = [((n.name,), n.round_trip_s) for n in nodes if n.round_trip_s is not None]
    yield _gauges("node_round_trip_seconds", "The TCP round trip, as the kernel estimates it", ["node"], trips)
    memory = [((n.name,), n.memory_bytes) for n in nodes]
    yield _gauges("node_memory_bytes", "Memory that a node's process needs at most", ["node"], memory)
    free = [((n.name,), n.free_bytes) for n in nodes if n.free_bytes is not None]
    yield _gauges("node_free_bytes", "Memory that the node's computer had free when it joined", ["node"], free)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dllama_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"dllama_{name}", text, value=value)


def _by_name(values: dict[str, int]) -> _Rows:
    return [((name,), value) for name, value in values.items()]


def _gauges(name: str, text: str, labels: list[str], rows: _Rows) -> Metric:
    return _filled(GaugeMetricFamily(f"dllama_{name}", text, labels=labels), rows)


def _counters(name: str, text: str, labels: list[str], rows: _Rows) -> Metric:
    return _filled(CounterMetricFamily(f"dllama_{name}", text, labels=labels), rows)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: _Rows) -> Metric:
    for labels, value in rows:
        family.add_metric(labels, value)
    return family
