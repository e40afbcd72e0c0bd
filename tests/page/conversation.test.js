import assert from "node:assert/strict";
import { test } from "node:test";

import { plainPrompt } from "../page/answering.js";
import {
  asMarkdown, conversationFrom, exported, fileName, imported, newConversation, newMessage, titleOf,
} from "../page/conversation.js";
import { checked } from "../page/settings.js";

function talk() {
  const conversation = newConversation("Be brief.");
  const answer = { ...newMessage("assistant", "**Hi**"), reasoning: "Short,\nthen.", end: "stop" };
  answer.usage = { prompt: 5, cached: 1, completion: 2, perSecond: 3.5 };
  conversation.messages.push(newMessage("user", "  Hello,\n<b>you</b>!"), answer);
  return conversation;
}

test("what is exported is imported as it was", () => {
  const conversation = talk();
  assert.deepEqual(imported(exported([conversation])), { conversations: [conversation], lost: 0 });
});

test("a file of anything else is refused in words, and what cannot be read in it is counted", () => {
  for (const text of ["", "no JSON", "null", "[]", "{}", '{"format": "other", "conversations": []}']) {
    assert.throws(() => imported(text), /^Error: This file /);
  }
  assert.throws(() => imported('{"format": "dllama-zmq conversations", "version": 2, "conversations": []}'), /newer/);
  const file = { format: "dllama-zmq conversations", version: 1, conversations: [talk(), 7, { messages: "x" }] };
  assert.equal(imported(JSON.stringify(file)).lost, 2);
});

test("a conversation that is not one is null, and every field of one is of its type", () => {
  const bad = [
    null, 1, "x", [], {}, { messages: {} }, { messages: [null] }, { messages: [{ role: "system", content: "" }] },
    { messages: [{ role: "user", content: 1 }] }, { messages: Array(2001).fill({ role: "user", content: "" }) },
    { messages: [{ role: "user", content: "x".repeat(4_000_001) }] },
  ];
  for (const value of bad) assert.equal(conversationFrom(value), null);
  const odd = conversationFrom({
    id: "../x", title: 3, created: "x", updated: Infinity, system: {}, plain: 1, extra: 1,
    messages: [{ role: "assistant", content: "a", reasoning: 1, end: "?", error: [], usage: { prompt: -1, completion: "2" } }],
  });
  assert.match(odd.id, /^[0-9a-f]{24}$/);
  assert.deepEqual([odd.title, odd.system, odd.plain, "extra" in odd], ["", "", false, false]);
  assert.ok(Number.isFinite(odd.created) && Number.isFinite(odd.updated));
  assert.deepEqual(odd.messages[0], {
    role: "assistant", content: "a", reasoning: "", end: "stopped", error: "",
    usage: { prompt: 0, cached: 0, completion: 0, perSecond: 0 },
  });
});

test("a conversation is named by its first words, and its file by letters alone", () => {
  const conversation = talk();
  assert.equal(titleOf(conversation), "Hello, <b>you</b>!");
  assert.equal(fileName({ ...conversation, title: "../../Größe: 5/6" }, "md"), "größe-5-6.md");
  assert.equal(fileName({ ...conversation, title: "///" }, "json"), "conversation.json");
});

test("as Markdown a conversation has every message, thoughts as quotes", () => {
  assert.equal(asMarkdown(talk()), `# Hello, <b>you</b>!

**System prompt**

Be brief.

## You

  Hello,
<b>you</b>!

## Answer

> *Thought:* Short,
> then.

**Hi**
`);
});

test("without a template the text goes on: no word is lost or put in", () => {
  const messages = [["user", "Once"], ["assistant", " upon a time."], ["user", "Then"], ["assistant", " what?\n"], ["user", "So"]]
    .map(([role, content]) => newMessage(role, content));
  assert.equal(plainPrompt({ messages }), "Once upon a time.\nThen what?\nSo");
});

test("settings that are kept or typed are within bounds, and what is none is left out", () => {
  assert.deepEqual(checked({ temperature: -3, top_k: 2.6, seed: "7", top_p: NaN, min_p: 9, stop: ["", "\n", 4], thinking: "toString", other: 1 }), {
    temperature: 0, top_k: 3, min_p: 1, stop: ["\n"],
  });
  for (const value of [null, 3, "x", []]) assert.deepEqual(checked(value), {});
});
