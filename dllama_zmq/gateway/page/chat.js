/** The open conversation: shows it, asks for answers and shows them as they come. One answer at a time. */

import { answer } from "./answering.js";
import { ApiError } from "./api.js";
import { newMessage } from "./conversation.js";
import { byId, h, setText } from "./dom.js";
import { AnswerView, UserView } from "./message_view.js";
import { Silence } from "./waiting.js";

const NEAR_PX = 100; // so near the end, the page follows the answer
const MOST_READ_OUT = 1000;

export class Chat {
  #running = null; // {conversation, message, view, abort}
  #follows = true;
  #shown = null;
  #views = new WeakMap(); // by message, of the conversation that is shown

  constructor({ api, library, settings, model }) {
    Object.assign(this, { api, library, settings, model });
    this.list = byId("messages");
    this.prompt = byId("prompt");
    this.list.parentElement.addEventListener("scroll", () => this.#scrolled());
    byId("latest").addEventListener("click", () => this.#toEnd());
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    this.prompt.addEventListener("keydown", (event) => this.#key(event));
    this.prompt.addEventListener("input", () => this.#grow());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    library.addEventListener("change", () => {
      if (library.current !== this.#shown) this.show();
    });
  }

  /** Show the library's current conversation from its beginning to its end. */
  show() {
    const { current } = this.library;
    if (this.#shown !== current) this.#views = new WeakMap();
    this.#shown = current;
    this.list.replaceChildren(...current.messages.map((message, index) => this.#view(message, index).element));
    byId("welcome").hidden = current.messages.length > 0;
    byId("plain-note").hidden = !current.plain;
    setText(byId("system-note"), current.system ? `System prompt: ${current.system}` : "");
    byId("system-note").hidden = current.system === "";
    this.prompt.placeholder = current.plain ? "Once upon a time" : "Ask something";
    this.#showRunning();
    this.#toEnd();
  }

  /** Stop the answer that comes. */
  stop() {
    this.#running?.abort.abort();
  }

  #view(message, index) {
    if (this.#running?.message === message) return this.#running.view;
    const { current } = this.library;
    let view = this.#views.get(message);
    if (!view) {
      view = message.role === "user"
        ? new UserView(message, { edit: (edited, text) => this.#edit(edited, text) })
        : new AnswerView(message, { plain: current.plain });
      this.#views.set(message, view);
    }
    if (message.role === "assistant") {
      view.finish(this.#actions(current, message, index === current.messages.length - 1));
    }
    return view;
  }

  /** What can be done with an answer; only the last one can be changed. */
  #actions(conversation, message, isLast) {
    if (!isLast) return {};
    const cut = message.end !== "stop" || conversation.plain;
    const lacksTemplate = !conversation.plain && /template/i.test(message.error);
    return {
      regenerate: () => this.#regenerate(conversation),
      goOn: cut && message.content !== "" ? () => this.#answer(conversation, message) : null,
      plainly: lacksTemplate ? () => this.#regenerate(conversation, true) : null,
    };
  }

  #key(event) {
    const coarse = matchMedia("(pointer: coarse)").matches; // there is no Shift+Enter
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || coarse) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  }

  #grow() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight + 2}px`;
  }

  #send() {
    const text = this.prompt.value;
    if (text.trim() === "" || this.#running) return;
    const conversation = this.library.current;
    conversation.messages.push(newMessage("user", text));
    this.prompt.value = "";
    this.#grow();
    this.#answer(conversation);
  }

  #edit(message, text) {
    const conversation = this.library.current;
    const index = conversation.messages.indexOf(message);
    if (index < 0 || this.#running) return;
    conversation.messages.splice(index, Infinity, newMessage("user", text));
    this.#answer(conversation);
    this.prompt.focus();
  }

  #regenerate(conversation, plain = conversation.plain) {
    if (this.#running) return;
    conversation.messages.pop();
    conversation.plain = plain;
    this.#answer(conversation);
    this.prompt.focus();
  }

  /** Ask for an answer to `conversation`, or for more of its last message. */
  async #answer(conversation, goneOn = null) {
    if (this.#running) return;
    const message = goneOn ?? newMessage("assistant");
    Object.assign(message, { end: "", error: "", usage: null });
    if (!goneOn) conversation.messages.push(message);
    const view = new AnswerView(message, { plain: conversation.plain, afterDraw: () => this.#follow(message) });
    const running = { conversation, message, view, abort: new AbortController() };
    this.#running = running;
    this.library.changed(conversation);
    this.show();
    setText(byId("status"), "The answer is coming.");
    view.wait("Waiting for the first word…");
    const silence = new Silence(this.api, (words) => view.wait(words));
    try {
      await this.#receive(running, goneOn !== null, silence);
    } catch (error) {
      const stopped = error.name === "AbortError";
      message.end = stopped ? "stopped" : "error";
      if (!stopped) message.error = error instanceof ApiError ? error.message : `This page has a defect: ${error}`;
    } finally {
      silence.end();
      this.#running = null;
      if (message.end === "") message.end = "stop";
      const isLast = conversation.messages.at(-1) === message;
      view.finish(this.#actions(conversation, message, isLast));
      if (this.#shown === conversation) this.#views.set(message, view);
      if (conversation.messages.includes(message)) this.library.keepSoon(conversation);
      this.#showRunning();
      setText(byId("status"), spoken(message));
    }
  }

  async #receive({ conversation, message, view, abort }, continues, silence) {
    const asked = { conversation, continues, model: this.model.id, parameters: this.settings.parameters };
    const hooks = {
      signal: abort.signal,
      onWait: (seconds, error) => {
        silence.broken();
        view.wait(`${error.message} Trying again in ${seconds} s…`);
      },
    };
    for await (const event of answer(this.api, asked, hooks)) {
      silence.broken();
      if (event.kind === "queued") {
        view.wait(event.note ? `Waiting: ${event.note}` : `In the queue, behind ${event.ahead} others`);
      } else if (event.kind === "progress") {
        view.wait(`Reading the prompt: ${event.done} of ${event.total} tokens`, event.done / Math.max(1, event.total));
      } else if (event.kind === "text") {
        view.wait("");
        message.content += event.content;
        message.reasoning += event.reasoning;
        view.append(event.content, event.reasoning);
        this.library.keepSoon(conversation);
      } else if (event.kind === "end") {
        message.end = event.reason === "length" ? "length" : "stop";
      } else if (event.kind === "usage") {
        const { prompt, cached, completion, perSecond } = event;
        message.usage = { prompt, cached, completion, perSecond };
      }
    }
  }

  #showRunning() {
    const isRunning = this.#running !== null;
    const hadFocus = [byId("stop"), byId("send")].includes(document.activeElement);
    byId("stop").hidden = !isRunning;
    byId("send").hidden = isRunning;
    if (hadFocus) (isRunning ? byId("stop") : this.prompt).focus();
    document.body.classList.toggle("answering", isRunning);
  }

  #follow(message) {
    if (this.#follows && this.#shown?.messages.includes(message)) this.#toEnd();
  }

  #toEnd() {
    const pane = this.list.parentElement;
    pane.scrollTop = pane.scrollHeight;
    this.#follows = true;
    byId("latest").hidden = true;
  }

  #scrolled() {
    const pane = this.list.parentElement;
    this.#follows = pane.scrollHeight - pane.scrollTop - pane.clientHeight < NEAR_PX;
    byId("latest").hidden = this.#follows;
  }
}

/** What a screen reader says of an answer, once: its words, where they are few. */
function spoken({ content, end, error }) {
  if (error) return `The answer has failed. ${error}`;
  const words = content.length > MOST_READ_OUT ? `${content.slice(0, MOST_READ_OUT)}…` : content;
  return `${end === "stopped" ? "Stopped" : "The answer"}: ${words}`;
}
