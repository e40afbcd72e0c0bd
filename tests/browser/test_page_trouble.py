"""What the page says and does when the server has no key of it, no place, no template, or breaks in mid-answer."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from browser.opened import SOON_MS, Opened, expect
from command_line import kill
from integration.api import Api, running_api

pytestmark = pytest.mark.browser

REFUSED = "401 (Unauthorized)"


def test_a_key_is_asked_for_and_kept_until_the_tab_is_closed(
    open_page: Callable[..., Opened], tmp_path: Path, talking_model: Path
) -> None:
    with running_api(tmp_path, talking_model, keys=["right-key-1"]) as api:
        page = open_page(api, allowed=[REFUSED])
        page.page.goto(page.url)
        dialog = page.page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key", exact=True).fill("wrong-key-1")
        dialog.get_by_role("button", name="Use it").click()
        expect(page.page.get_by_text("does not accept this key")).to_be_visible()
        dialog.get_by_label("Key", exact=True).fill("right-key-1")
        page.page.keyboard.press("Enter")
        expect(page.page.locator("#model-facts")).to_contain_text("parameters")
        page.set(max_tokens=8)
        assert page.say("Hello") != ""
        page.page.reload()
        expect(page.page.locator("#brief")).to_have_text("talking")
        assert page.page.evaluate("JSON.stringify(localStorage)").count("right-key") == 0
        page.page.evaluate("sessionStorage.clear()")
        page.page.reload()
        dialog.get_by_role("button", name="Cancel").click()
        expect(page.page.locator("#brief")).to_be_empty()
        page.send("Hello again")
        dialog.get_by_role("button", name="Cancel").click()
        expect(page.answers.last.locator(".error")).to_have_text("This server wants an API key.")
        page.page.get_by_role("button", name="Try again").click()
        dialog.get_by_label("Key", exact=True).fill("right-key-1")
        page.page.keyboard.press("Enter")
        page.answered()
        expect(page.answers.last.locator(".error")).to_have_count(0)


def test_a_model_without_a_template_continues_the_text(
    open_page: Callable[..., Opened], tmp_path: Path, small_model: Path
) -> None:
    with running_api(tmp_path, small_model) as api:
        page = open_page(api, allowed=["400 (Bad Request)"])
        page.visit()
        expect(page.page.locator("#plain-note")).to_be_visible()
        page.set(temperature=0, max_tokens=12)
        answer = page.say("Once upon a time")
        whole = api.post("/v1/completions", prompt="Once upon a time", temperature=0, max_tokens=12)
        assert answer == whole["choices"][0]["text"].strip()
        expect(page.answers.last.locator(".facts")).to_contain_text("tokens/s")
        page.page.get_by_role("button", name="Continue this answer").click()
        page.answered()
        assert page.asked[-1]["prompt"] == "Once upon a time" + whole["choices"][0]["text"]


def test_while_nodes_are_missing_the_page_says_so_and_asks_again(page: Opened, api: Api) -> None:
    page.allowed = ("503 (Service Unavailable)",)
    page.visit()
    page.set(max_tokens=8)
    pid = api.cli.pid("worker1")
    kill(pid, signal.SIGSTOP)
    try:
        page.send("Hello")
        note = page.answers.last.locator(".note")
        expect(note).to_contain_text("worker1", timeout=SOON_MS)
    finally:
        kill(pid, signal.SIGCONT)
    assert page.answered() != ""
    expect(page.answers.last.locator(".error")).to_have_count(0)


def test_an_answer_that_breaks_keeps_what_came_and_can_be_tried_again(page: Opened, api: Api) -> None:
    page.allowed = ("ERR_", "503 (Service Unavailable)")
    page.visit()
    page.set(temperature=0)  # such an answer does not end by itself
    page.send("Tell me all")
    expect(page.answers.last.locator(".prose").last).not_to_be_empty()
    kill(gateway_of(api).pid)
    expect(page.answers.last.locator(".error")).to_be_visible(timeout=SOON_MS)
    assert page.text(page.answers.last) != ""
    page.set(max_tokens=8)
    page.page.get_by_role("button", name="Try again").click()
    page.answered()
    while page.answers.last.locator(".error").count():  # until the server is there again
        page.page.get_by_role("button", name="Try again").click()
        page.answered()
    assert page.text(page.answers.last) != ""


def gateway_of(api: Api) -> psutil.Process:
    """The process that serves HTTP."""
    return api.cli.processes_of("gateway")[0]
