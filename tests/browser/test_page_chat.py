"""A conversation in the web page: it streams, stops, goes on, is changed, kept, exported and imported."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from browser.opened import SOON_MS, Opened, expect
from command_line import until
from integration.api import Api

pytestmark = pytest.mark.browser


def test_an_answer_streams_and_is_the_apis(page: Opened, api: Api) -> None:
    page.visit()
    page.set(temperature=0, max_tokens=300)
    page.send("Hello")
    lengths = set()

    def has_grown() -> bool:
        if page.page.locator("#stop").is_visible():
            lengths.add(len(page.text(page.answers.last)))
        return len(lengths) >= 3

    until(has_grown, 30.0, "the answer to grow while it comes")
    page.answered()
    expect(page.answers.last.locator(".facts")).to_contain_text("300 tokens")
    expect(page.answers.last.locator(".facts")).to_contain_text("tokens/s")
    messages = [{"role": "user", "content": "Hello"}]
    whole = api.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=300)
    _, kept = page.downloaded(0, "Export as JSON")
    assert json.loads(kept)["conversations"][0]["messages"][1]["content"] == whole["choices"][0]["message"]["content"]
    assert page.asked[0]["messages"] == messages
    assert page.asked[0]["temperature"] == 0


def test_stop_and_escape_end_the_answer_at_the_server_and_keep_what_came(page: Opened, api: Api) -> None:
    page.visit()
    page.set(temperature=0)  # such an answer does not end by itself
    for number, stop in enumerate((lambda: page.page.click("#stop"), lambda: page.page.keyboard.press("Escape"))):
        page.send("Tell me all")
        expect(page.answers.nth(number).locator(".prose").last).not_to_be_empty()
        stop()
        text = page.answered()
        until(lambda: api.cli.status().active == 0, 30.0, "the server to stop")
        expect(page.answers.last.locator(".facts")).to_contain_text("Stopped.")
        assert page.text(page.answers.last) == text != ""


def test_an_answer_is_regenerated_and_a_stopped_one_is_continued(page: Opened) -> None:
    page.visit()
    page.set(temperature=0, max_tokens=20)
    first = page.say("Hello")
    page.page.get_by_role("button", name="Regenerate").click()
    assert page.answered() == first
    assert page.asked[0] == page.asked[1]
    expect(page.answers).to_have_count(1)
    page.page.get_by_role("button", name="Continue this answer").click()
    longer = page.answered()
    assert longer.startswith(first)
    assert len(longer) > len(first)
    assert page.asked[2]["messages"][-1]["role"] == "assistant"
    assert page.asked[2]["continue_final_message"] is True


def test_a_message_is_edited_and_what_came_after_it_is_gone(page: Opened) -> None:
    page.visit()
    page.set(max_tokens=8)
    page.say("one")
    page.say("two")
    page.questions.first.hover()
    page.page.get_by_role("button", name="Edit this message").first.click()
    editor = page.page.get_by_label("The message")
    expect(editor).to_be_focused()
    editor.fill("three")
    page.page.get_by_role("button", name="Send again").click()
    page.answered()
    expect(page.questions).to_have_text(["three"])
    expect(page.answers).to_have_count(1)
    assert page.asked[-1]["messages"] == [{"role": "user", "content": "three"}]


def test_a_system_prompt_and_settings_go_with_every_request(page: Opened) -> None:
    page.visit()
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "repeat_penalty": 1.1, "seed": 7}
    given |= {"presence_penalty": 0.1, "frequency_penalty": 0.2, "max_tokens": 4}
    page.set(system="Be brief.", stop="END\n###", **given)
    page.say("Hello")
    asked = page.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    given |= {"stop": ["END", "###"]}
    assert {name: asked[name] for name in given} == given
    expect(page.page.locator("#settings-open")).to_have_text("Settings (10)")


def test_conversations_are_there_after_a_reload_and_in_order(page: Opened) -> None:
    page.visit()
    page.set(max_tokens=8)
    answer = page.say("The first one")
    page.page.click("#new")
    page.say("The second one")
    assert page.titles() == ["The second one", "The first one"]
    until(lambda: _n_kept(page) == 2, 30.0, "both to be kept")
    page.page.reload()
    expect(page.questions).to_have_text(["The second one"])
    page.page.get_by_role("link", name="The first one").click()
    expect(page.questions).to_have_text(["The first one"])
    assert page.text(page.answers.last) == answer
    page.page.go_back()
    expect(page.questions).to_have_text(["The second one"])


def test_what_came_before_the_page_was_closed_in_mid_answer_is_kept(page: Opened) -> None:
    page.visit()
    page.set(temperature=0)  # such an answer does not end by itself
    page.send("Tell me all")
    expect(page.answers.last.locator(".prose").last).not_to_be_empty()
    came = page.text(page.answers.last)
    page.page.reload()
    expect(page.answers.last.locator(".facts")).to_contain_text("Stopped.")
    assert page.text(page.answers.last).startswith(came)


def test_a_conversation_is_exported_deleted_and_imported(page: Opened) -> None:
    page.visit()
    page.set(max_tokens=8)
    answer = page.say("Hello <b>you</b>")
    page.choose(0, "Rename")
    page.page.get_by_role("textbox", name="Name").fill("A / new: name")
    page.page.get_by_role("button", name="Rename").last.click()
    assert page.titles() == ["A / new: name"]
    name, markdown = page.downloaded(0, "Export as Markdown")
    assert name == "a-new-name.md"
    assert markdown.startswith("# A / new: name\n\n## You\n\nHello <b>you</b>\n\n## Answer\n\n")
    name, exported = page.downloaded(0, "Export as JSON")
    assert name == "a-new-name.json"
    page.choose(0, "Delete")
    page.page.get_by_role("button", name="Delete").last.click()
    expect(page.page.locator("#no-conversations")).to_be_visible()
    expect(page.questions).to_have_count(0)
    page.bring_file(exported)
    page.page.get_by_role("link", name="A / new: name").click()
    assert page.text(page.answers.last) == answer
    page.bring_file(exported)
    expect(page.page.locator("#toast")).to_contain_text("1 were here already")
    page.bring_file("{}")
    expect(page.page.locator("#toast")).to_contain_text("Nothing was imported.")


def test_kept_data_that_is_damaged_does_not_break_the_page(open_page: Callable[..., Opened], api: Api) -> None:
    page = open_page(api)
    page.visit()
    page.set(max_tokens=8)
    page.say("Hello")
    until(lambda: _n_kept(page) == 1, 30.0, "it to be kept")
    page.page.evaluate(
        """async () => {
          const open = indexedDB.open("dllama-zmq");
          await new Promise((resolve) => { open.onsuccess = resolve; });
          const table = open.result.transaction("conversations", "readwrite").objectStore("conversations");
          table.put({ id: "x", messages: "none" });
          table.put({ id: 7, messages: [{ role: "user", content: {} }] });
          localStorage.setItem("dllama-zmq.settings", "{no JSON");
          localStorage.setItem("dllama-zmq.theme", "<b>");
          await new Promise((resolve) => { table.transaction.oncomplete = resolve; });
          open.result.close();
        }"""
    )
    page.page.reload()
    expect(page.page.locator("#toast")).to_contain_text("2 kept conversation(s) cannot be read")
    assert page.titles() == ["Hello"]
    page.set(max_tokens=8)
    page.say("Again")
    expect(page.answers).to_have_count(2)


def test_the_page_is_used_by_keyboard_alone(page: Opened) -> None:
    page.visit()
    page.set(max_tokens=8)
    page.page.keyboard.press("Tab")  # so that the focus is shown
    page.page.locator("#skip").focus()
    seen = []
    for _ in range(9):
        seen.append(page.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or seen[-1] == "prompt"  # its frame has the accent's colour
        page.page.keyboard.press("Tab")
    assert seen == ["skip", "Chat", "Cluster", "theme", "new", "import", "messages-pane", "prompt", "settings-open"]
    page.page.locator("#skip").press("Enter")
    expect(page.page.locator("#prompt")).to_be_focused()
    page.page.keyboard.type("one")
    page.page.keyboard.press("Shift+Enter")
    page.page.keyboard.type("two")
    page.page.keyboard.press("Enter")
    page.answered()
    assert page.questions.all_inner_texts() == ["one\ntwo"]
    expect(page.page.locator("#prompt")).to_be_focused()
    expect(page.page.locator("#status")).to_contain_text("The answer: ", timeout=SOON_MS)


def _n_kept(page: Opened) -> int:
    """How many conversations the browser's database has whole: with the end of their answers."""
    return int(
        page.page.evaluate(
            """async () => {
              const open = indexedDB.open("dllama-zmq");
              await new Promise((resolve) => { open.onsuccess = resolve; });
              const request = open.result.transaction("conversations").objectStore("conversations").getAll();
              await new Promise((resolve) => { request.onsuccess = resolve; });
              open.result.close();
              return request.result.filter(({ messages }) => messages.at(-1)?.end).length;
            }"""
        )
    )
