"""Whatever a model writes is text: nothing of it runs, loads or breaks the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.opened import Opened, expect

pytestmark = pytest.mark.browser

HOSTILE = {
    "scripts": """<script>document.title = 'run'</script>

<img src=x onerror="document.title = 'run'">

<svg onload="document.title='run'"><script>document.title='run'</script></svg>

<iframe srcdoc="<script>parent.document.title='run'</script>"></iframe>

<style>body { display: none }</style><base href=//evil.example><meta http-equiv=refresh content=0>

<a href="javascript:document.title='run'" onclick="document.title='run'">click</a><form action=//evil.example>""",
    "links": """[a](javascript:document.title='run') [b](JAVASCRIPT:alert(1)) [d](vbscript:x) [e](file:///etc/passwd)
[c](data:text/html,<script>alert(1)</script>) [f](//evil.example) [g](/v1/models) [h]( \tjavascript:alert(1))
[i](java&#115;cript:alert(1)) <javascript:alert(1)> [j](<javascript:alert(1)>) [k](blob:null/x)

[good](https://good.example/a?b=c) <mailto:a@good.example> http://good.example/d""",
    "images": """![a](https://evil.example/a.png) ![b](data:image/svg+xml,<svg onload=alert(1)>)
![c](x.png "onerror=alert(1)") [![d](https://evil.example/d.png)](https://good.example/)""",
    "fences": "```html onload=alert(1) <script>\n<script>document.title = 'run'</script>\n",
    "attributes": """| <img src=x onerror=alert(1)> | `</code><script>alert(1)</script>` |
|---|---|
| " onmouseover=alert(1) x=" | ' |

```" onclick="alert(1)
x
```

# <b>x</b> {#id onclick=alert(1)}""",
    "long lines": f"{'x' * 20_000}\n\n`{'y' * 20_000}`\n\n```\n{'z' * 20_000}\n```\n\n| {'w' * 20_000} |\n|---|",
    "deep lists": "\n".join(f"{'  ' * level}- {level}" for level in range(1000)),
    "deep quotes": f"{'> ' * 1000}deep\n\n{'- ' * 1000}deep",
    "open marks": f"{'**a _b ~~c [d](' * 2000}\n\n{'`' * 9999}\n\n{'![' * 5000}",
    "control characters": "\x00\x01\x1b[31m\u202egnirts\u202c\u200b\ufeff \U0001f600 \u0301\u0301" + "e\u0301" * 500,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_model_writes_is_inert(page: Opened, what: str) -> None:
    page.visit()
    text = HOSTILE[what]
    page.bring({"role": "user", "content": text}, {"role": "assistant", "content": text, "reasoning": text})
    answer = page.answers.last
    expect(answer.locator(".tools").last).to_be_visible()
    answer.locator("summary").click()
    found = answer.evaluate(
        """(answer) => ({
          tags: [...new Set([...answer.querySelectorAll("*")].map((each) => each.localName))],
          attributes: [...answer.querySelectorAll(".prose *")].flatMap((each) => each.getAttributeNames()),
          links: [...answer.querySelectorAll("a")].map((link) => [link.href, link.rel, link.target]),
          title: document.title,
          wide: [document.documentElement, document.getElementById("messages-pane")]
            .some((each) => each.scrollWidth > each.clientWidth),
        })"""
    )
    drawn = {
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "p",
        "div",
        "figure",
        "figcaption",
        "pre",
        "code",
        "span",
        "button",
        "a",
        "br",
    }
    drawn |= {"ul", "ol", "li", "em", "strong", "del", "hr", "blockquote", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(found["tags"]) - drawn <= {"details", "summary"}
    named = {"class", "href", "rel", "target", "tabindex", "role", "aria-label", "type", "start"}
    assert set(found["attributes"]) <= named
    assert found["title"] == "dllama-zmq"
    assert not found["wide"]
    for href, rel, target in found["links"]:
        assert href.startswith(("https://", "http://", "mailto:")), href
        assert ("noopener" in rel, target) == (True, "_blank")
    if what == "links":
        good = ["https://good.example/a?b=c", "mailto:a@good.example", "http://good.example/d"]
        assert [href for href, _, _ in found["links"]] == 2 * good  # in what was thought, and in what was said
    assert page.questions.last.inner_text().strip() == text.strip() or what == "control characters"
    for button in answer.get_by_role("button", name="Copy").all():
        button.click()


def test_an_answer_that_streams_is_drawn_as_the_whole_text_is(page: Opened) -> None:
    page.visit()
    texts = [*HOSTILE.values(), (Path(__file__).parents[2] / "dllama_zmq" / "ARCHITECTURE.md").read_text()]
    different = page.page.evaluate(
        """async (texts) => {
          const { MarkdownView } = await import("./markdown_view.js");
          const drawn = (text, size) => {
            const view = new MarkdownView(document.createElement("div"));
            for (let at = 0; at < text.length; at += size) {
              view.append(text.slice(at, at + size));
              view.draw();
            }
            return view.element;
          };
          return texts.filter((text) => !drawn(text, 997).isEqualNode(drawn(text, text.length)));
        }""",
        texts,
    )
    assert different == []
