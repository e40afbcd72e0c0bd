"""The web page open in a browser: what a person does with it, and what it must never do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

expect = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed; `make test-browser` installs it"
).expect
SOON_MS = 30_000


@dataclass(slots=True)
class Opened:
    """One page. wrongs: errors in its console, dialogs of scripts, requests to other servers."""

    context: BrowserContext
    page: Page
    url: str
    wrongs: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests for answers."""
    allowed: tuple[str, ...] = ()
    """Words of console messages that a test expects."""

    def visit(self, fragment: str = "") -> None:
        """Open the page, whose model it knows then."""
        self.page.goto(f"{self.url}/{fragment}")
        expect(self.page.locator("#model-facts")).to_contain_text("parameters")

    def set(self, **values: object) -> None:
        """Settings, by the names of the API's parameters."""
        self.page.click("#settings-open")
        for name, value in values.items():
            self.page.locator(f"#settings [name={name}]").fill(str(value))
        self.page.click("#settings-close")

    def send(self, text: str) -> None:
        """Send a message."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def say(self, text: str) -> str:
        """Send a message and wait for its answer."""
        self.send(text)
        return self.answered()

    def answered(self) -> str:
        """Wait for the end of the answer; its text."""
        expect(self.page.locator("#send")).to_be_visible(timeout=SOON_MS)
        return self.text(self.answers.last)

    @property
    def answers(self) -> Locator:
        """All answers."""
        return self.page.locator("article.answer")

    @property
    def questions(self) -> Locator:
        """All messages of the person."""
        return self.page.locator("article.user .words")

    def text(self, answer: Locator) -> str:
        """What an answer says, as it is kept."""
        text: str = answer.locator(".prose, .words").last.inner_text()
        return text

    def titles(self) -> list[str]:
        """The conversations in the list."""
        titles: list[str] = self.page.locator("#conversations li a").all_inner_texts()
        return titles

    def choose(self, number: int, what: str) -> None:
        """Something of a conversation's menu."""
        item = self.page.locator("#conversations li").nth(number)
        item.locator("summary").click()
        item.get_by_role("button", name=what, exact=True).click()

    def downloaded(self, number: int, what: str) -> tuple[str, str]:
        """The name and text of the file that a conversation's menu gives."""
        with self.page.expect_download() as waiting:
            self.choose(number, what)
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_text()

    def bring(self, *messages: dict[str, Any], name: str = "brought.json") -> None:
        """Import a conversation of these messages and open it."""
        file = {"format": "dllama-zmq conversations", "version": 1, "conversations": [{"messages": list(messages)}]}
        self.bring_file(json.dumps(file), name)
        expect(self.page.locator("#toast")).to_contain_text("1 imported")
        self.page.locator("#conversations li a").first.click()

    def bring_file(self, text: str, name: str = "brought.json") -> None:
        """Import a file."""
        self.page.set_input_files(
            "#import-file", {"name": name, "mimeType": "application/json", "buffer": text.encode()}
        )


def opened(
    browser: Browser, url: str, width: int = 1280, height: int = 800, allowed: Sequence[str] = (), **options: Any
) -> Opened:
    """A browser of its own, with nothing kept, at no page yet."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(SOON_MS)
    made = Opened(context, context.new_page(), url, allowed=tuple(allowed))

    def hears_console(message: Any) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in made.allowed):
            made.wrongs.append(f"console: {message.text}")

    def hears_request(request: Any) -> None:
        if not request.url.startswith((f"{url}/", "blob:")):
            made.wrongs.append(f"request: {request.url}")
        if request.method == "POST":
            made.asked.append(request.post_data_json)

    def hears_dialog(dialog: Any) -> None:
        made.wrongs.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    made.page.on("console", hears_console)
    made.page.on("pageerror", lambda error: made.wrongs.append(f"error: {error}"))
    made.page.on("dialog", hears_dialog)
    context.on("request", hears_request)
    context.on("page", lambda other: made.wrongs.append("another page") if other is not made.page else None)
    return made
