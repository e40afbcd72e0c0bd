"""Everybody can use the page: what axe-core finds wrong in each of its views, at each size and in both colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser.opened import Opened, expect
from integration.api import Api

pytestmark = pytest.mark.browser

AXE = Path(__file__).parents[2] / "build" / "browser" / "package" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WRITTEN = """# A heading

Some *text* with `code` and a [link](https://good.example).

- [x] done
- [ ] to do

| a | b |
|---|--:|
| 1 | 2 |

> quoted

```python
print(1)
```
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_fault_in_any_view(open_page: Callable[..., Opened], api: Api, width: int, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip(f"axe-core is not there ({AXE}); `make test-browser` fetches it")
    page = open_page(api, width=width, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    faults: list[str] = []

    def look(view: str) -> None:
        page.page.evaluate(AXE.read_text())
        found = page.page.evaluate(f"axe.run({{ runOnly: {RULES} }})")
        assert len(found["passes"]) > 10
        for fault in found["violations"]:
            nodes = "; ".join(" ".join(node["target"]) + ": " + node["failureSummary"] for node in fault["nodes"])
            faults.append(f"{view}: {fault['id']} ({fault['impact']}): {nodes}")

    def open_menu() -> None:
        if width == 390:
            page.page.click("#menu")

    page.visit()
    look("nothing said yet")
    page.set(max_tokens=8)
    page.say("Hello")
    open_menu()
    answer = {"role": "assistant", "content": WRITTEN, "reasoning": "Hm.", "end": "error", "error": "It broke."}
    page.bring({"role": "user", "content": "Hi"}, answer)
    page.answers.last.locator("summary").click()
    look("a conversation")
    page.page.get_by_role("button", name="Edit this message").click()
    look("a message that is edited")
    page.page.keyboard.press("Escape")
    open_menu()
    page.page.locator("#conversations summary").first.click()
    look("the list of conversations")
    page.page.get_by_role("button", name="Rename").click()
    look("a question")
    page.page.keyboard.press("Escape")
    if width == 390:
        page.page.keyboard.press("Escape")
    page.page.click("#settings-open")
    look("the settings")
    page.page.click("#settings-close")
    page.page.get_by_role("link", name="Cluster").click()
    expect(page.page.locator(".node")).to_have_count(2)
    look("the cluster")
    assert faults == []


def test_the_chosen_colours_last_and_the_systems_are_the_default(open_page: Callable[..., Opened], api: Api) -> None:
    page = open_page(api, color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    page.visit()
    dark = page.page.evaluate(ground)
    page.page.click("#theme")
    light = page.page.evaluate(ground)
    assert light != dark
    page.page.reload()
    assert page.page.evaluate(ground) == light
    page.page.click("#theme")
    assert page.page.evaluate(ground) == dark
