/** Conversations in this browser (IndexedDB), at most MOST of them. What cannot be read is left where it is. */

import { conversationFrom } from "./conversation.js";

const NAME = "dllama-zmq";
const TABLE = "conversations";
export const MOST = 200;

/** The store; where the browser has none (or keeps it from this page), one that lasts until the tab is closed. */
export async function openStore() {
  try {
    return new Store(await opened());
  } catch {
    return new Store(null);
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab has an older version open"));
  });
}

class Store {
  #database;
  #memory = new Map(); // where there is no database

  constructor(database) {
    this.#database = database;
    if (database) database.onversionchange = () => database.close();
  }

  /** Whether conversations are still there when the page is opened again. */
  get lasts() {
    return this.#database !== null;
  }

  /** Every conversation, the latest first, and how many could not be read. */
  async all() {
    const values = this.#database ? await this.#ask("readonly", (table) => table.getAll()) : [...this.#memory.values()];
    const found = values.map(conversationFrom);
    const conversations = found.filter((conversation, index) => conversation !== null && conversation.id === values[index].id);
    conversations.sort((one, other) => other.updated - one.updated);
    return { conversations, lost: values.length - conversations.length };
  }

  /** Keep `conversation` as it is now. Raises Error where the browser has no room. */
  async put(conversation) {
    const copy = structuredClone(conversation);
    if (this.#database) await this.#ask("readwrite", (table) => table.put(copy));
    else this.#memory.set(copy.id, copy);
  }

  async remove(id) {
    if (this.#database) await this.#ask("readwrite", (table) => table.delete(id));
    else this.#memory.delete(id);
  }

  #ask(mode, question) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(TABLE, mode);
      const request = question(transaction.objectStore(TABLE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error ?? new Error("the browser kept nothing"));
      transaction.onerror = () => reject(transaction.error);
    });
  }
}
