/** One message on the page: its text, what was thought, how it went, and what can be done with it. */

import { button, copyButton, h, setText } from "./dom.js";
import { MarkdownView } from "./markdown_view.js";

const REASONS = {
  length: "The answer has reached its greatest length.",
  stopped: "Stopped.",
};

/** A user's message. actions: {edit(message)}. */
export class UserView {
  constructor(message, { edit }) {
    this.message = message;
    this.text = h("div", { class: "words" }, message.content);
    this.tools = h("div", { class: "tools" },
      copyButton(() => message.content, "Copy", { "aria-label": "Copy this message" }),
      button("Edit", () => this.#edit(edit), { "aria-label": "Edit this message and send it again" }));
    this.element = h("article", { class: "message user" }, h("h2", { class: "unseen" }, "You"), this.text, this.tools);
  }

  #edit(send) {
    const field = h("textarea", { "aria-label": "The message", rows: "3" });
    field.value = this.message.content;
    const close = () => {
      form.replaceWith(this.text);
      this.tools.hidden = false;
      this.tools.querySelector("button:last-child").focus();
    };
    const submit = (event) => {
      event.preventDefault();
      if (field.value.trim() !== "") send(this.message, field.value);
    };
    const form = h("form", { class: "editor", onsubmit: submit },
      field,
      h("div", { class: "row end" },
        button("Cancel", close),
        h("button", { type: "submit", class: "main" }, "Send again")));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.text.replaceWith(form);
    this.tools.hidden = true;
    field.focus();
  }
}

/** An answer, which may be coming yet. plain: it is text that goes on, not Markdown. */
export class AnswerView {
  #pace = new Pace(() => this.#draw());
  #afterDraw;
  #thinkingTouched = false;
  #share = null; // of the prompt that is evaluated

  constructor(message, { plain, afterDraw = () => {} }) {
    this.message = message;
    this.#afterDraw = afterDraw;
    this.summary = h("summary", { onclick: () => { this.#thinkingTouched = true; } }, "Thinking");
    this.thought = new MarkdownView(h("div", { class: "prose" }));
    this.thinking = h("details", { class: "thinking", hidden: true }, this.summary, this.thought.element);
    this.said = plain ? new PlainView() : new MarkdownView(h("div", { class: "prose" }));
    this.note = h("p", { class: "note", hidden: true });
    this.end = h("div");
    this.element = h("article", { class: "message answer" },
      h("h2", { class: "unseen" }, "Answer"), this.thinking, this.said.element, this.note, this.end);
    this.#add(message.content, message.reasoning);
    this.#draw();
  }

  /** More of the answer has come. */
  append(content, reasoning) {
    if (content && this.message.content === content) this.#closeThinking();
    this.#add(content, reasoning);
    this.#pace.ask();
  }

  #add(content, reasoning) {
    this.said.append(content);
    this.thought.append(reasoning);
  }

  #draw() {
    this.said.draw();
    this.thought.draw();
    if (this.message.reasoning !== "" && this.thinking.hidden) {
      this.thinking.hidden = false;
      this.thinking.open = this.message.end === "" && this.message.content === "";
    }
    setText(this.summary, this.message.end === "" && this.message.content === "" ? "Thinking…" : "Thoughts");
    this.#afterDraw();
  }

  #closeThinking() {
    if (!this.#thinkingTouched) this.thinking.open = false;
  }

  /** What the answer waits for, beside the share of the prompt that is evaluated, 0 to 1; "" when it comes. */
  wait(words, share = this.#share) {
    this.#share = words === "" ? null : share;
    this.note.hidden = words === "";
    if (words === "") return;
    if (this.note.childElementCount !== 2) {
      this.note.replaceChildren(h("span"), h("progress", { max: "1", "aria-label": "Prompt evaluated" }));
    }
    const [text, bar] = this.note.children;
    setText(text, words);
    bar.hidden = share === null;
    if (share !== null) bar.value = share;
  }

  /** The answer has ended, as the message says. actions: {regenerate, goOn, plainly}; those that are null are not offered. */
  finish(actions) {
    this.wait("");
    this.#pace.stop();
    this.#draw();
    const { message } = this;
    const tools = [
      message.content && copyButton(() => message.content, "Copy", { "aria-label": "Copy this answer" }),
      actions.goOn && button("Continue", actions.goOn, { "aria-label": "Continue this answer" }),
      actions.regenerate && button(message.error ? "Try again" : "Regenerate", actions.regenerate),
      actions.plainly && button("Let it continue the text", actions.plainly, { class: "main" }),
    ].filter(Boolean);
    const facts = factsOf(message);
    this.end.replaceChildren(
      ...(message.error ? [h("p", { class: "error" }, message.error)] : []),
      h("div", { class: "tools" }, ...tools, facts && h("span", { class: "facts" }, facts)));
    this.#afterDraw();
  }
}

function factsOf({ end, usage }) {
  const facts = [REASONS[end]];
  if (usage?.completion) facts.push(`${usage.completion} tokens`);
  if (usage?.perSecond) facts.push(`${usage.perSecond.toFixed(1)} tokens/s`);
  if (usage?.prompt) facts.push(`prompt ${usage.prompt}${usage.cached ? ` (${usage.cached} cached)` : ""}`);
  return facts.filter(Boolean).join(" · ");
}

/** Text as it is. */
class PlainView {
  #new = "";

  constructor() {
    this.element = h("div", { class: "words" });
  }

  append(text) {
    this.#new += text;
  }

  draw() {
    if (this.#new !== "") this.element.append(this.#new);
    this.#new = "";
  }
}

/** Draw at most once a frame and for a fifth of the time: what takes long to draw is drawn seldom. */
class Pace {
  #planned = null;
  #tookMs = 0;

  constructor(draw) {
    this.draw = draw;
  }

  ask() {
    this.#planned ??= setTimeout(() => requestAnimationFrame(() => {
      if (this.#planned === null) return;
      this.#planned = null;
      const start = performance.now();
      this.draw();
      this.#tookMs = performance.now() - start;
    }), 4 * this.#tookMs);
  }

  stop() {
    clearTimeout(this.#planned);
    this.#planned = null;
  }
}
