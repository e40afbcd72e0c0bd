/** The conversations of this browser, the one that is open, and when they are kept. Tells "change" events. */

import { conversationFrom, exported, imported, isEmpty, newConversation } from "./conversation.js";
import { MOST, openStore } from "./store.js";

const KEEP_AFTER_MS = 1000; // while an answer comes
const UNSAVED = "dllama-zmq.unsaved"; // a page that is left has no time for a database; what it had to keep is here

export class Library extends EventTarget {
  #store;
  #unsaved = new Map(); // timers by id
  conversations = [];
  current = newConversation();
  lost = 0; // that could not be read
  make = newConversation; // what a new one is

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
    this.#takeUp();
    addEventListener("pagehide", () => this.#layDown());
  }

  /** Keep what the page had no time to keep when it was left. */
  #takeUp() {
    try {
      const { conversations } = imported(localStorage.getItem(UNSAVED));
      const ids = new Set(conversations.map(({ id }) => id));
      this.conversations = [...conversations, ...this.conversations.filter(({ id }) => !ids.has(id))];
      conversations.forEach((conversation) => this.keepSoon(conversation));
      localStorage.removeItem(UNSAVED);
    } catch {
      // nothing is there, or not what this page had put there
    }
  }

  #layDown() {
    const unsaved = this.conversations.filter(({ id }) => this.#unsaved.has(id));
    try {
      if (unsaved.length > 0) localStorage.setItem(UNSAVED, exported(unsaved));
    } catch {
      // no room: the last second of the answer is lost
    }
  }

  /** Whether conversations are still there when the page is opened again. */
  get lasts() {
    return this.#store.lasts;
  }

  /** Open the conversation of that id, else a new one. */
  open(id = "") {
    this.current = this.conversations.find((conversation) => conversation.id === id) ?? this.make();
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
