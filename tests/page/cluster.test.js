import assert from "node:assert/strict";
import { test } from "node:test";

import { figuresOf, returnedSince, tokensPerSecond } from "../page/cluster_figures.js";
import { bytes, short } from "../page/model.js";
import { reasonOf } from "../page/waiting.js";

const NODE = {
  state: "ready", reason: "", host: "pi", address: "", pid: 1, threads: 4, memory_bytes: 160, free_bytes: 500,
  weight_bytes: 100, kv_bytes: 50, sent_bytes: 0, kept_bytes: 0, total_bytes: 0, seconds: 0, doing: "", percent: 0,
};

function status() {
  const times = (compute_s, wait_s, waited_for_s = 0, paused_s = 0, messages_s = 0) => (
    { compute_s, wait_s, waited_for_s, paused_s, messages_s });
  const row = (node, direction, wire_bytes, phase = "prediction") => ({ node, direction, wire_bytes, phase, kind: "sum" });
  return {
    name: "home", version: "1", state: "ready", note: "", pid: 9, uptime_s: 5, model: "m", sync: "f32", kernels: "simd",
    seq_len: 512, active: 1, queued: 2, requests: [], oversubscribed: false,
    kv: { page_positions: 64, pages: 10, in_use: 4, cached: 2, prompt_tokens: 20, cached_tokens: 5, preemptions: 0 },
    steps: { prediction: 20 }, tokens: { prompt: 9, prediction: 40 }, sampled: { prompt: 1, prediction: 40 },
    nodes: [{ ...NODE, name: "root" }, { ...NODE, name: "worker1", weight_bytes: 300, free_bytes: null }],
    recent: { prediction: {
      steps: 20, tokens: 40, wall_s: 2, slowest: "worker1", share: 1,
      nodes: { root: times(0.5, 1.5), worker1: times(1.8, 0.1, 1.2, 0.1, 0.2) },
    } },
    traffic: [
      row("worker1", "sent", 4000), row("worker1", "sent", 400), row("worker1", "received", 800),
      row("worker1", "sent", 1e9, "idle"),
    ],
  };
}

test("a node's box has its share, its times in a step and its bytes a token, each way as the node sees it", () => {
  const [root, worker] = figuresOf(status()).nodes;
  assert.deepEqual([root.share, worker.share], [0.25, 0.75]);
  assert.deepEqual([root.computeMs, root.waitMs, worker.computeMs, worker.waitedForMs], [25, 75, 90, 60]);
  assert.deepEqual([root.computePart, root.waitPart, worker.computePart], [0.25, 0.75, 0.9]);
  assert.deepEqual([root.sentBytes, root.receivedBytes], [110, 20]);
  assert.deepEqual([worker.sentBytes, worker.receivedBytes], [20, 110]);
});

test("the slow node is marked, with the largest of its reasons", () => {
  const { nodes } = figuresOf(status());
  assert.deepEqual(nodes.map((node) => node.isSlowest), [false, true]);
  assert.equal(nodes[1].why, "it computes longer");
  const paused = status();
  paused.recent.prediction.nodes.worker1.paused_s = 1;
  assert.equal(figuresOf(paused).nodes[1].why, "its program is paused");
});

test("a node that is not there is bad, one that loads is busy and says how far it is", () => {
  const changed = status();
  Object.assign(changed.nodes[1], { state: "absent", reason: "was lost" });
  assert.deepEqual(figuresOf(changed).nodes.map(({ tone }) => tone), ["good", "bad"]);
  Object.assign(changed.nodes[1], { state: "loading", sent_bytes: 20, kept_bytes: 30, total_bytes: 200 });
  assert.deepEqual(figuresOf(changed).nodes[1].state, "loading, 25%");
  Object.assign(changed.nodes[1], { sent_bytes: 170, doing: "compiling", percent: 3 });
  assert.deepEqual([figuresOf(changed).nodes[1].state, figuresOf(changed).nodes[1].tone], ["compiling, 3%", "busy"]);
});

test("a node that was gone between two looks is known by its process", () => {
  const [before, now] = [status(), status()];
  assert.deepEqual(returnedSince(before, now), []);
  now.nodes[1].pid = 2;
  assert.deepEqual([returnedSince(before, now), returnedSince(undefined, now)], [["worker1"], []]);
  const [root, worker] = figuresOf(now, new Set(["worker1"])).nodes;
  assert.deepEqual([root.tone, worker.tone, worker.state], ["good", "busy", "was gone, is back"]);
  now.nodes[1].state = "absent";
  assert.equal(figuresOf(now, new Set(["worker1"])).nodes[1].tone, "bad");
});

test("tokens a second are those between two looks, and none where the root was started anew", () => {
  const [before, now] = [status(), status()];
  now.sampled.prediction += 30;
  assert.equal(tokensPerSecond(before, now, 2), 15);
  assert.equal(tokensPerSecond({ ...before, pid: 1 }, now, 2), null);
  assert.equal(tokensPerSecond(now, before, 2), null);
  assert.equal(tokensPerSecond(undefined, now, 2), null);
});

test("a cluster that has done nothing yet, or says little, is shown too", () => {
  const fresh = { ...status(), recent: {}, traffic: [], tokens: {}, sampled: {} };
  const [root] = figuresOf(fresh).nodes;
  assert.deepEqual([root.computeMs, root.sentBytes, root.isSlowest], [null, null, false]);
  assert.equal(figuresOf({ ...fresh, kv: { ...fresh.kv, prompt_tokens: 0 } }).prefixHits, null);
  assert.deepEqual(figuresOf({}).nodes, []);
});

test("numbers are short and have units", () => {
  assert.deepEqual([0, 999, 805_888, 1_150_000, 15_400_000, 4.6e9].map(bytes), ["0 B", "999 B", "806 kB", "1.15 MB", "15.4 MB", "4.60 GB"]);
  assert.deepEqual([999, 6_123_456, 8_190_735_360, 70e9].map(short), ["999", "6.1 million", "8.2 billion", "70 billion"]);
});

test("why an answer waits is what the cluster says", () => {
  assert.match(reasonOf({ ...status(), state: "forming", note: "worker1 was lost" }), /worker1 was lost/);
  assert.match(reasonOf(status()), /2 waiting/);
  assert.match(reasonOf({ ...status(), queued: 0 }), /computing/);
});
