import assert from "node:assert/strict";
import { test } from "node:test";

import { events } from "../page/sse.js";

/** A stream of bytes in pieces of `size`; `cancelled` is set where its reader has gone. */
function streamOf(text, size) {
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  const made = new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(bytes.slice(at, at + size));
      at += size;
      return undefined;
    },
    cancel() {
      made.cancelled = true;
    },
  }, { highWaterMark: 0 });
  return made;
}

async function read(text, size) {
  const found = [];
  for await (const data of events(streamOf(text, size))) found.push(data);
  return found;
}

const STREAM = ': ping\r\n\r\ndata: {"a": "Grüße, 世界 🦙"}\n\nevent: x\rdata:one\rdata: two\r\rdata\n\nid: 7\n\ndata: [DONE]\n\n';

test("events are the same wherever the bytes are cut", async () => {
  const bytes = new TextEncoder().encode(STREAM).length;
  for (let size = 1; size <= bytes; size += 1) {
    assert.deepEqual(await read(STREAM, size), ['{"a": "Grüße, 世界 🦙"}', "one\ntwo", "", "[DONE]"], `pieces of ${size}`);
  }
});

test("an event that the end of the stream cuts off is no event", async () => {
  assert.deepEqual(await read("data: whole\n\ndata: cut off\n", 5), ["whole"]);
});

test("comments are signs of life", async () => {
  let signs = 0;
  for await (const _ of events(streamOf(": ping\n\n".repeat(3), 8), () => { signs += 1; })) assert.fail("no event");
  assert.equal(signs, 3);
});

test("who stops reading closes the connection", async () => {
  const stream = streamOf("data: x\n\n".repeat(100), 9);
  for await (const _ of events(stream)) break;
  assert.equal(stream.cancelled, true);
});

test("a line without an end is refused, and is not joined again at each piece", async () => {
  const endless = new ReadableStream({
    pull(controller) {
      controller.enqueue(new Uint8Array(1 << 16).fill(97));
    },
  });
  await assert.rejects(async () => {
    for await (const _ of events(endless)) assert.fail("no event");
  }, /too long/);
});
