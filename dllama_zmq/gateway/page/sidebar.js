/** The list of conversations: open, rename, delete, export, import. */

import { asMarkdown, exported, fileName, imported, titleOf } from "./conversation.js";
import { ask, confirmed } from "./dialogs.js";
import { button, byId, download, h } from "./dom.js";
import { MOST } from "./store.js";

const MOST_BYTES = 100_000_000; // of an imported file

export class Sidebar {
  /** say(words): tell a person. */
  constructor(library, say) {
    this.library = library;
    this.say = say;
    this.list = byId("conversations");
    library.addEventListener("change", () => this.#show());
    byId("export-all").addEventListener("click", () => this.#exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
    byId("kept").textContent = library.lasts
      ? `Kept in this browser only, the last ${MOST}.`
      : "This browser keeps nothing for this page: conversations last until the tab is closed.";
    this.#show();
  }

  #show() {
    const { conversations, current } = this.library;
    const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    this.list.replaceChildren(...conversations.map((conversation) => this.#item(conversation, current)));
    if (focused) this.list.querySelector(`li[data-id="${CSS.escape(focused)}"] a`)?.focus();
    byId("no-conversations").hidden = conversations.length > 0;
    byId("export-all").disabled = conversations.length === 0;
  }

  #item(conversation, current) {
    const title = titleOf(conversation);
    const menu = h("details", { class: "menu" },
      h("summary", { "aria-label": `What to do with “${title}”` }, "⋯"),
      h("div", { class: "menu-items" },
        button("Rename", () => this.#rename(conversation)),
        button("Export as Markdown", () => {
          download(fileName(conversation, "md"), "text/markdown", asMarkdown(conversation));
        }),
        button("Export as JSON", () => {
          download(fileName(conversation, "json"), "application/json", exported([conversation]));
        }),
        button("Delete", () => this.#remove(conversation), { class: "danger" })));
    menu.addEventListener("focusout", ({ relatedTarget }) => {
      if (!menu.contains(relatedTarget)) menu.open = false;
    });
    menu.addEventListener("click", ({ target }) => {
      if (target.closest("button")) menu.open = false;
    });
    return h("li", { "data-id": conversation.id },
      h("a", { href: `#chat/${conversation.id}`, "aria-current": conversation === current && "true" }, title), menu);
  }

  async #rename(conversation) {
    const title = await ask({
      title: "Rename the conversation", yes: "Rename", field: { label: "Name", value: titleOf(conversation) },
    });
    if (title === null) return;
    conversation.title = title.trim().slice(0, 200);
    this.library.keepSoon(conversation);
    this.#show();
  }

  async #remove(conversation) {
    const words = `“${titleOf(conversation)}” will be gone from this browser.`;
    if (!(await confirmed("Delete the conversation?", words, "Delete"))) return;
    const isOpen = conversation === this.library.current;
    await this.library.remove(conversation);
    if (isOpen) this.library.open();
  }

  #exportAll() {
    const day = new Date().toISOString().slice(0, 10);
    download(`conversations-${day}.json`, "application/json", exported(this.library.conversations));
  }

  async #import(field) {
    const [file] = field.files;
    field.value = ""; // the same file may be chosen again
    if (!file) return;
    try {
      if (file.size > MOST_BYTES) throw new Error("This file is too large.");
      const { conversations, lost } = imported(await file.text());
      const added = this.library.add(conversations);
      const here = conversations.length - added;
      this.say([`${added} imported`, here && `${here} were here already`, lost && `${lost} cannot be read`]
        .filter(Boolean).join(", ") + ".");
    } catch (error) {
      this.say(`Nothing was imported. ${error.message}`);
    }
  }
}
