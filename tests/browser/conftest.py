"""A real headless browser, and pages of a real cluster in it. A test says why it does not run where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser.chromium import chromium
from command_line import SMALL, write_small_model
from integration.api import Api, running_api
from msgspec.structs import replace
from tiny import tiny_tokenizer_data

from dllama_zmq.formats import write_t

if TYPE_CHECKING:  # without Playwright, each module of tests says so
    from browser.opened import Opened
    from playwright.sync_api import Browser

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or playwright install chromium)")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no user namespace to give away
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="session")
def talking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with a chat template: its answers are words without sense, and do not end by themselves."""
    path = write_small_model(tmp_path_factory.mktemp("talking") / "talking.m")
    write_t(path.with_suffix(".t"), replace(tiny_tokenizer_data(SMALL.vocab_size), chat_template=TEMPLATE))
    return path


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, talking_model: Path) -> Iterator[Api]:
    """The API of a cluster of two nodes, which all tests of a module share."""
    with running_api(tmp_path_factory.mktemp("page"), talking_model, 2) as api:
        yield api


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens pages of a server, each as a browser of its own; all that they did wrong fails the test at its end."""
    from browser.opened import opened

    pages: list[Opened] = []

    def opens(api: Api, **options: Any) -> Opened:
        pages.append(opened(browser, api.url, **options))
        return pages[-1]

    yield opens
    for page in pages:
        page.context.close()
    assert [wrong for page in pages for wrong in page.wrongs] == []


@pytest.fixture
def page(open_page: Callable[..., Opened], api: Api) -> Opened:
    """The page of `api`, in a browser that has nothing kept."""
    return open_page(api)
