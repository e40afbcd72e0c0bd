/**
 * Markdown as elements, while it is being written. Every element is made by name and every text is a text node, so
 * nothing that a model writes can run, load or style anything; links lead to http, https and mailto, in a new tab.
 */

import { copyButton, h } from "./dom.js";
import { GrowingMarkdown } from "./growing.js";
import { parseInline } from "./inline.js";

/** A text that grows at its end. Blocks that are whole are drawn once; only what is open is drawn again. */
export class MarkdownView {
  #text = new GrowingMarkdown();
  #blocks = []; // the open ones, as they were drawn
  #drawn = []; // their elements

  constructor(element) {
    this.element = element;
  }

  /** More text. Shown by the next `draw`. */
  append(text) {
    this.#text.append(text);
  }

  /** Show all text that has come. */
  draw() {
    const blocks = this.#text.blocks();
    blocks.forEach((block, index) => this.#show(block, index));
    for (const element of this.#drawn.splice(blocks.length)) element.remove();
    const settled = this.#text.settle();
    this.#blocks = blocks.slice(settled);
    this.#drawn = this.#drawn.slice(settled);
  }

  #show(block, index) {
    const [old, shown] = [this.#blocks[index], this.#drawn[index]];
    if (!shown) {
      this.#drawn[index] = blockElement(block);
      this.element.append(this.#drawn[index]);
    } else if (grows(old, block)) {
      shown.querySelector("code").firstChild.appendData(block.text.slice(old.text.length));
    } else if (!isSame(old, block)) {
      this.#drawn[index] = blockElement(block);
      shown.replaceWith(this.#drawn[index]);
    }
  }
}

function isSame(one, other) {
  return JSON.stringify({ ...one, from: 0 }) === JSON.stringify({ ...other, from: 0 });
}

/** Whether a block of code has only become longer; a text node is lengthened in the time of what is new. */
function grows(old, block) {
  return block.type === "code" && old.type === "code" && old.language === block.language
    && block.text.startsWith(old.text);
}

function blockElement(block) {
  switch (block.type) {
    case "heading": // the page has h1 and h2 of its own
      return h(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case "code":
      return codeElement(block);
    case "quote":
      return h("blockquote", {}, ...block.children.map(blockElement));
    case "list":
      return h(block.ordered ? "ol" : "ul", { start: block.ordered && block.start !== 1 ? block.start : null },
        ...block.items.map((item) => itemElement(item, block.loose)));
    case "table":
      return tableElement(block);
    case "rule":
      return h("hr");
    default:
      return h("p", {}, ...inline(block.text));
  }
}

function codeElement({ language, text }) {
  const code = h("code", {}, document.createTextNode(text));
  return h("figure", { class: "code" },
    h("figcaption", {},
      h("span", {}, language || "text"),
      copyButton(() => code.textContent, "Copy", { "aria-label": "Copy the code" })),
    h("pre", { tabindex: "0", role: "region", "aria-label": `Code, ${language || "text"}` }, code));
}

function itemElement({ checked, children }, loose) {
  const content = children.flatMap((block) => (
    block.type === "paragraph" && !loose ? inline(block.text) : [blockElement(block)]
  ));
  if (checked === null) return h("li", {}, ...content);
  const mark = h("span", { role: "img", "aria-label": checked ? "done" : "to do" }, checked ? "☑ " : "☐ ");
  return h("li", { class: "task" }, mark, ...content);
}

function tableElement({ align, header, rows }) {
  const cell = (tag) => (text, column) => (
    h(tag, { class: align[column] ? `align-${align[column]}` : null }, ...inline(text))
  );
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {},
      h("thead", {}, h("tr", {}, ...header.map(cell("th")))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map(cell("td")))))));
}

function inline(text) {
  return parseInline(text).map(inlineNode);
}

function inlineNode(node) {
  switch (node.type) {
    case "text":
      return document.createTextNode(node.text);
    case "code":
      return h("code", {}, node.text);
    case "break":
      return h("br");
    case "link":
      return h("a", { href: node.href, target: "_blank", rel: "noopener noreferrer" }, ...node.children.map(inlineNode));
    default: // em, strong, del
      return h(node.type, {}, ...node.children.map(inlineNode));
  }
}
