/** One node as a box: its state, share and memory, and how long it computes and waits in a step. */

import { h, setText } from "./dom.js";
import { bytes } from "./model.js";

export class NodeBox {
  constructor(name) {
    this.state = h("span", { class: "state" });
    this.place = h("p", { class: "place" });
    this.reason = h("p", { class: "reason" });
    this.compute = h("span", { class: "compute" });
    this.wait = h("span", { class: "wait" });
    this.times = h("p", { class: "times" });
    this.last = h("p", { class: "last" });
    this.timing = h("div", {},
      h("div", { class: "bar", "aria-hidden": "true" }, this.compute, this.wait), this.times, this.last);
    this.facts = Object.fromEntries(["share", "memory", "bytes"].map((fact) => [fact, h("dd")]));
    this.element = h("li", { class: "node" },
      h("div", { class: "node-head" }, h("h3", {}, name), this.state),
      this.place,
      this.reason,
      this.timing,
      h("dl", {},
        h("dt", {}, "Share"), this.facts.share,
        h("dt", {}, "Memory"), this.facts.memory,
        h("dt", {}, "Per token"), this.facts.bytes));
  }

  /** Show `node`, as cluster_figures.js gives it. */
  draw(node) {
    this.element.dataset.tone = node.tone;
    this.element.classList.toggle("slowest", node.isSlowest);
    setText(this.state, node.state);
    setText(this.place, node.place);
    setText(this.reason, node.reason);
    this.timing.hidden = node.tone === "bad"; // what it did before says nothing now
    const isTimed = node.computeMs !== null;
    this.compute.style.width = `${100 * node.computePart}%`;
    this.wait.style.width = `${100 * node.waitPart}%`;
    setText(this.times, isTimed ? `${ms(node.computeMs)} computing, ${ms(node.waitMs)} waiting` : "no steps yet");
    setText(this.last, node.isSlowest ? `Slowest: the others wait ${ms(node.waitedForMs)} for it; ${node.why}` : "");
    setText(this.facts.share, `${(100 * node.share).toFixed(1)}%, ${bytes(node.weightBytes)}`);
    const free = node.freeBytes === null ? "" : `, ${bytes(node.freeBytes)} free`;
    setText(this.facts.memory, `${bytes(node.memoryBytes)}${free}`);
    setText(this.facts.bytes, node.sentBytes === null
      ? "–" : `↑ ${bytes(node.sentBytes)} ↓ ${bytes(node.receivedBytes)}`);
  }
}

function ms(value) {
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
}
