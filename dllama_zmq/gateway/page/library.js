/** The conversations of this browser, the one that is open, and when they are kept. Tells "change" events. */

import { conversationFrom, isEmpty, newConversation } from "./conversation.js";
import { MOST, openStore } from "./store.js";

const KEEP_AFTER_MS = 1000; // while an answer comes; what came in the last second may be lost where the browser ends

export class Library extends EventTarget {
  #store;
  #unsaved = new Map(); // timers by id
  conversations = [];
  current = newConversation();
  lost = 0; // that could not be read

  /** Read all that is kept. Raises nothing: where nothing can be read, nothing is there. */
  async load() {
    this.#store = await openStore();
    try {
      const { conversations, lost } = await this.#store.all();
      this.conversations = conversations;
      this.lost = lost;
    } catch {
      this.lost = 1;
    }
    addEventListener("pagehide", () => [...this.#unsaved.keys()].forEach((id) => this.#keep(id)));
  }

  /** Whether conversations are still there when the page is opened again. */
  get lasts() {
    return this.#store.lasts;
  }

  /** Open the conversation of that id, or a new one: `make()` gives it. */
  open(id, make = newConversation) {
    this.current = this.conversations.find((conversation) => conversation.id === id) ?? make();
    this.#tell();
  }

  /** `conversation` is another now: show it first, and keep it soon. */
  changed(conversation) {
    conversation.updated = Date.now();
    if (isEmpty(conversation)) return;
    this.conversations = [conversation, ...this.conversations.filter((other) => other !== conversation)];
    for (const old of this.conversations.slice(MOST)) this.remove(old);
    this.keepSoon(conversation);
    this.#tell();
  }

  /** Keep `conversation` within a second. */
  keepSoon({ id }) {
    if (!this.#unsaved.has(id)) this.#unsaved.set(id, setTimeout(() => this.#keep(id), KEEP_AFTER_MS));
  }

  async #keep(id) {
    clearTimeout(this.#unsaved.get(id));
    this.#unsaved.delete(id);
    const conversation = this.conversations.find((other) => other.id === id);
    if (!conversation) return;
    try {
      await this.#store.put(conversation);
    } catch (error) {
      this.#warn(`The browser cannot keep this conversation (${error.message}). Export it, or delete others.`);
    }
  }

  async remove(conversation) {
    this.conversations = this.conversations.filter((other) => other !== conversation);
    clearTimeout(this.#unsaved.get(conversation.id));
    this.#unsaved.delete(conversation.id);
    try {
      await this.#store.remove(conversation.id);
    } catch (error) {
      this.#warn(`The browser could not delete the conversation (${error.message}).`);
    }
    this.#tell();
  }

  /** Add conversations of a file; those that are here already are not added twice. How many were new. */
  add(conversations) {
    let added = 0;
    for (const conversation of conversations) {
      const here = this.conversations.find(({ id }) => id === conversation.id);
      if (here && JSON.stringify(here.messages) === JSON.stringify(conversation.messages)) continue;
      const own = here ? conversationFrom({ ...conversation, id: "" }) : conversation;
      this.conversations.push(own);
      this.keepSoon(own);
      added += 1;
    }
    this.conversations.sort((one, other) => other.updated - one.updated);
    for (const old of this.conversations.slice(MOST)) this.remove(old);
    this.#tell();
    return added;
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  #warn(words) {
    this.dispatchEvent(new CustomEvent("warning", { detail: words }));
  }
}
