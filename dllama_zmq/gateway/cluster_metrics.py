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
    yield _counter("preemptions", "Times that a request gave up its pages for another", kv.preemptions)
    yield _counter("steps", "Steps that were run", _by_name(status.steps), "phase")
    yield _counter("step_tokens", "Tokens that were evaluated", _by_name(status.tokens), "phase")
    recent = status.recent.items()
    speeds = [((phase,), times.tokens / times.wall_s) for phase, times in recent if times.wall_s]
    yield _gauge("tokens_per_second", "Tokens evaluated per second of the last steps", speeds, "phase")
    seconds = [((phase,), times.wall_s / times.steps) for phase, times in recent if times.steps]
    yield _gauge("step_seconds", "Seconds of one of the last steps", seconds, "phase")
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
        yield _gauge(f"node_{name}_seconds", text, rows, "node", "phase")
    traffic = [((row.node, row.direction, row.phase, row.kind), row.wire_bytes) for row in status.traffic]
    labels = ("node", "direction", "phase", "kind")
    yield _counter("node_bytes", "Bytes between the root and a worker, counted by the root", traffic, *labels)
    nodes = status.nodes
    yield _gauge("node_up", "Whether a node is ready", [((n.name,), n.state == "ready") for n in nodes], "node")
    trips = [((n.name,), n.round_trip_s) for n in nodes if n.round_trip_s is not None]
    yield _gauge("node_round_trip_seconds", "The TCP round trip, as the kernel estimates it", trips, "node")
    memory = [((n.name,), n.memory_bytes) for n in nodes]
    yield _gauge("node_memory_bytes", "Memory that a node's process needs at most", memory, "node")
    free = [((n.name,), n.free_bytes) for n in nodes if n.free_bytes is not None]
    yield _gauge("node_free_bytes", "Memory that the node's computer had free when it joined", free, "node")


def _gauge(name: str, text: str, value: float | _Rows, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"dllama_{name}", text, labels=labels), value)


def _counter(name: str, text: str, value: float | _Rows, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"dllama_{name}", text, labels=labels), value)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, value: float | _Rows) -> Metric:
    for labels, number in [((), value)] if isinstance(value, int | float) else value:
        family.add_metric(labels, number)
    return family


def _by_name(values: dict[str, int]) -> _Rows:
    return [((name,), value) for name, value in values.items()]
