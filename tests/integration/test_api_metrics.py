"""/metrics: what it counts, and that Grafana's dashboard asks only for what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import until
from integration.api import Api, running_api
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[2] / "tools" / "grafana_dashboard.json"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api"), small_model, 2) as api:
        yield api


def samples(api: Api) -> Samples:
    reply = api.http.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


def test_a_request_is_counted_with_its_tokens_and_seconds(api: Api) -> None:
    before = samples(api)
    api.post("/v1/completions", prompt="once upon a time", max_tokens=30, temperature=0)
    api.post("/v1/completions", prompt="once upon a time", max_tokens=10, temperature=0)
    sums = {"node": "worker1", "direction": "sent", "phase": "prediction", "kind": "sum"}
    sent = value(before, "dllama_node_bytes_total", **sums)
    # The gateway answers with the same status for a quarter of a second.
    until(lambda: value(samples(api), "dllama_node_bytes_total", **sums) > sent, 20.0, "a new status")
    after = samples(api)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert more("dllama_requests_total", reason="length") == 2
    assert more("dllama_predicted_tokens_total") == 40
    assert more("dllama_prompt_tokens_total") > 0
    assert more("dllama_time_to_first_token_seconds_count") == 2
    assert more("dllama_time_between_tokens_seconds_count") == 38
    assert more("dllama_http_responses_total", route="/v1/completions", status="200") == 2
    assert more("dllama_predicted_seconds_total") > 0
    assert more("dllama_node_bytes_total", node="worker1", direction="received", phase="prediction", kind="partial") > 0
    assert value(after, "dllama_requests_open") == 0
    assert value(after, "dllama_up") == 1
    for node in ("root", "worker1"):
        assert value(after, "dllama_node_up", node=node) == 1
        assert value(after, "dllama_node_compute_seconds", node=node, phase="prediction") > 0
        assert value(after, "dllama_node_wait_seconds", node=node, phase="prediction") > 0


def test_prompt_and_prediction_have_speeds_apart(api: Api) -> None:
    api.post("/v1/completions", prompt="once upon a time " * 20, max_tokens=5)
    found = samples(api)
    assert value(found, "dllama_tokens_per_second", phase="prompt") > 0
    assert value(found, "dllama_tokens_per_second", phase="prediction") > 0


def test_the_dashboard_asks_for_what_there_is(api: Api) -> None:
    api.post("/v1/completions", prompt="once", max_tokens=3)
    there = {name for name, _ in samples(api)} | {"dllama_node_round_trip_seconds"}  # that of TCP
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for p in panels for t in p["targets"] for name in re.findall(r"dllama_\w+", t["expr"])}
    assert len(asked) > 12
    assert asked - there == set()
