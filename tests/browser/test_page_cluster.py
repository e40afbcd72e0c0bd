"""The cluster view: what every node does, who is slow, and who is gone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser.opened import SOON_MS, Opened, expect
from command_line import kill, until
from integration.api import Api, running_api

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, talking_model: Path) -> Iterator[Api]:
    """The API of a cluster of four nodes."""
    with running_api(tmp_path_factory.mktemp("page"), talking_model, 4) as api:
        yield api


def test_every_node_has_a_box_with_its_share_memory_bytes_and_times(page: Opened, api: Api) -> None:
    api.post("/v1/completions", prompt="Once", max_tokens=40)
    page.visit("#cluster")
    boxes = page.page.locator(".node")
    expect(boxes.locator("h3")).to_have_text(["root", "worker1", "worker2", "worker3"])
    expect(boxes.locator(".state")).to_have_text(["ready"] * 4)
    for box in boxes.all():
        expect(box.locator("dd").nth(0)).to_contain_text("%")
        expect(box.locator("dd").nth(1)).to_have_text(re.compile(r"^[\d.]+ MB, [\d.]+ [GM]B free$"))
        expect(box.locator("dd").nth(2)).to_contain_text("kB")
        expect(box.locator(".times")).to_contain_text("ms computing")
    row = next(row for row in api.cli.status().nodes if row.name == "worker1")
    share = row.weight_bytes / sum(node.weight_bytes for node in api.cli.status().nodes)
    expect(boxes.nth(1).locator("dd").nth(0)).to_contain_text(f"{100 * share:.1f}%")


def test_running_requests_and_their_speed_are_seen_live(
    page: Opened, open_page: Callable[..., Opened], api: Api
) -> None:
    page.visit()
    page.set(temperature=0)  # such an answer does not end by itself
    page.send("Tell me all")
    other = open_page(api)
    other.visit("#cluster")
    expect(other.page.locator("#running")).to_have_text("1")
    expect(other.page.locator("#request-rows td").first).to_have_text("running")
    expect(other.page.locator("#speed")).not_to_have_text("–", timeout=SOON_MS)
    expect(other.page.locator("#speed")).not_to_have_text("0.0", timeout=SOON_MS)
    page.page.click("#stop")
    expect(other.page.locator("#running")).to_have_text("0")
    expect(other.page.locator("#requests")).to_be_hidden()


def test_a_killed_worker_is_seen_within_2_s_and_again_when_it_is_back(page: Opened, api: Api) -> None:
    page.visit("#cluster")
    box = page.page.locator(".node", has_text="worker2")
    expect(box).to_have_attribute("data-tone", "good")
    box.evaluate(
        """(box) => {
          window.changes = [];
          new MutationObserver(() => window.changes.push([Date.now(), box.dataset.tone])).observe(
            box, { attributes: true, attributeFilter: ["data-tone"] });
        }"""
    )
    pid = api.cli.pid("worker2")
    killed = time.time()
    kill(pid)
    seen = "window.changes.find(([, tone]) => tone !== 'good')?.[0] ?? 0"
    until(lambda: page.page.evaluate(seen), 30.0, "worker2 to be seen gone")
    seen_s = page.page.evaluate(seen) / 1000 - killed
    expect(box).to_have_attribute("data-tone", "good", timeout=SOON_MS)
    assert seen_s < 2.0
    assert api.cli.pid("worker2") != pid
    expect(page.page.locator("#cluster-alert")).to_be_hidden()
    expect(page.page.locator("#cluster-status")).to_contain_text("worker2: ready")


def test_a_view_that_nobody_sees_asks_for_nothing(page: Opened) -> None:
    page.visit("#cluster")
    expect(page.page.locator(".node")).to_have_count(4)
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.page.get_by_role("link", name="Chat").click()
    page.page.clock.install()
    page.page.clock.fast_forward(60_000)
    assert [url for url in asked if "cluster" in url] == []
