/** The cluster, live: a box for each node, and what all of them do together. Asks each second while it is seen. */

import { figuresOf, returnedSince, tokensPerSecond } from "./cluster_figures.js";
import { byId, h, setText } from "./dom.js";
import { NodeBox } from "./node_box.js";
import { Sparkline } from "./sparkline.js";

const EVERY_MS = 1000;
const RETURNED_MS = 3000; // a node that was gone is shown so for so long
const ANSWER_MS = 3000; // without an answer for so long, the server is said to be silent

export class ClusterView {
  #timer = null;
  #before = null; // the status before, and when it came
  #heardAt = 0;
  #boxes = new Map();
  #returned = new Map(); // when nodes came back, by name
  #tones = new Map();
  #speed = new Sparkline(byId("speed-line"), 60);

  constructor(api) {
    this.api = api;
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  /** Begin or end to look. */
  show(isShown) {
    this.isShown = isShown;
    this.#wake();
  }

  /** Look again where nothing was to be seen without a key. */
  wake() {
    if (this.isShown) this.#wake();
  }

  #wake() {
    const isSeen = this.isShown && document.visibilityState === "visible";
    if (isSeen && this.#timer === null) {
      this.#before = null;
      this.#heardAt = performance.now();
      this.#look();
    } else if (!isSeen) {
      clearTimeout(this.#timer);
      this.#timer = null;
    }
  }

  async #look() {
    const start = performance.now();
    const timer = setTimeout(() => {}, 0); // its number stands for this look
    this.#timer = timer;
    let status = null;
    let words = "";
    let isClosed = false; // to this page, for no key was given
    try {
      status = await this.api.get("v1/cluster", AbortSignal.timeout(ANSWER_MS));
    } catch (error) {
      words = error.name === "TimeoutError" ? "The server does not answer." : error.message;
      isClosed = error.status === 401;
    }
    if (this.#timer !== timer) return; // not seen any more
    if (status) this.#draw(status);
    else this.#drawSilence(words, isClosed);
    if (isClosed) this.#timer = null;
    else this.#timer = setTimeout(() => this.#look(), Math.max(100, EVERY_MS - (performance.now() - start)));
  }

  #draw(status) {
    const now = performance.now();
    this.#heardAt = now;
    const seconds = this.#before ? (now - this.#before.at) / 1000 : 0;
    const speed = tokensPerSecond(this.#before?.status, status, seconds);
    const figures = figuresOf(status, this.#lately(status, now));
    this.#before = { status, at: now };
    byId("cluster").classList.remove("silent");
    byId("cluster-alert").hidden = figures.state === "ready";
    setText(byId("cluster-alert"), figures.state === "ready" ? "" : `The cluster waits: ${figures.note}`);
    setText(byId("cluster-name"), figures.name);
    setText(byId("cluster-facts"), `${figures.state}, up ${duration(figures.uptimeS)} · ${figures.facts}`);
    this.#drawTotals(figures, speed);
    this.#drawNodes(figures);
    this.#drawRequests(figures.requests);
  }

  /** The nodes that have come back lately. */
  #lately(status, now) {
    for (const name of returnedSince(this.#before?.status, status)) this.#returned.set(name, now);
    const names = [...this.#returned].filter(([, at]) => now - at < RETURNED_MS).map(([name]) => name);
    return new Set(names);
  }

  #drawTotals(figures, speed) {
    setText(byId("running"), String(figures.running));
    setText(byId("waiting"), `${figures.waiting} waiting`);
    setText(byId("kv"), `${percent(figures.kvUsed)}`);
    setText(byId("kv-words"), figures.kvWords);
    byId("kv-used").style.width = `${100 * figures.kvUsed}%`;
    byId("kv-kept").style.width = `${100 * figures.kvKept}%`;
    setText(byId("prefix"), figures.prefixHits === null ? "–" : percent(figures.prefixHits));
    setText(byId("speed"), speed === null ? "–" : speed.toFixed(1));
    if (speed !== null) this.#speed.add(speed);
    const steps = figures.steps > 0
      ? `Times are per step, over the last ${figures.steps} steps of ${figures.phase}.` : "No steps yet.";
    const chance = figures.oversubscribed
      ? " Fewer cores than threads on the root's computer: which of its nodes is last is chance." : "";
    setText(byId("nodes-note"), steps + chance);
  }

  #drawNodes({ nodes }) {
    const names = new Set(nodes.map(({ name }) => name));
    for (const [name, box] of this.#boxes) {
      if (names.has(name)) continue;
      box.element.remove();
      this.#boxes.delete(name);
    }
    for (const node of nodes) {
      let box = this.#boxes.get(node.name);
      if (!box) {
        box = new NodeBox(node.name);
        this.#boxes.set(node.name, box);
        byId("nodes").append(box.element);
      }
      box.draw(node);
    }
    this.#announce(nodes);
  }

  /** A screen reader hears of nodes that go and that come. */
  #announce(nodes) {
    const isNews = ({ name, tone }) => tone !== "busy" && (this.#tones.get(name) ?? tone) !== tone;
    const news = nodes.filter(isNews).map(({ name, state, reason }) => `${name}: ${reason || state}`);
    if (news.length > 0) setText(byId("cluster-status"), news.join("; "));
    for (const { name, tone } of nodes) this.#tones.set(name, tone);
  }

  #drawRequests(requests) {
    byId("requests").hidden = requests.length === 0;
    byId("request-rows").replaceChildren(...requests.map((request) => h("tr", {},
      ...[
        request.state,
        `${request.prompt_tokens}${request.cached_tokens ? ` (${request.cached_tokens} cached)` : ""}`,
        String(request.tokens),
        request.tokens_per_s ? request.tokens_per_s.toFixed(1) : "–",
        duration(request.seconds),
      ].map((text) => h("td", {}, text)))));
  }

  #drawSilence(words, isClosed) {
    const seconds = Math.round((performance.now() - this.#heardAt) / 1000);
    byId("cluster").classList.add("silent");
    byId("cluster-alert").hidden = false;
    setText(byId("cluster-alert"), isClosed ? words : `${words} Last heard ${seconds} s ago; asking again.`);
    setText(byId("speed"), "–");
  }
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
}

/** 4000 s as "1 h 6 min". */
export function duration(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

