/** Questions to a person, each a dialog of its own: Escape and "Cancel" say no, and the focus returns. */

import { button, h } from "./dom.js";

/** Whether a person says yes to `yes`. */
export function confirmed(title, words, yes) {
  return ask({ title, words, yes, danger: true }).then((answer) => answer !== null);
}

/**
 * The text that a person gives, or null. field: {label, value, type}; where there is none, "" means yes.
 */
export function ask({ title, words = "", yes = "OK", field = null, danger = false }) {
  return new Promise((resolve) => {
    const input = field && h("input", {
      id: "asked", type: field.type ?? "text", autocomplete: "off", spellcheck: "false", maxlength: "500",
    });
    if (input) input.value = field.value ?? "";
    const dialog = h("dialog", { class: "question", "aria-labelledby": "asked-title" },
      h("form", { method: "dialog", onsubmit: submit },
        h("h2", { id: "asked-title" }, title),
        words && h("p", {}, words),
        input && h("label", { for: "asked" }, field.label),
        input,
        h("div", { class: "row end" },
          button("Cancel", () => dialog.close()),
          h("button", { type: "submit", class: danger ? "danger" : "main" }, yes))));
    let answer = null;
    function submit() {
      answer = input ? input.value : "";
    }
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    input?.select();
  });
}

/** A person's API key, or null. refused: the one before was. */
export function askKey(refused) {
  return ask({
    title: "API key",
    words: refused
      ? "The server does not accept this key. Which one is right?"
      : "This server wants an API key (api.keys in its cluster.yaml). It is kept until this tab is closed.",
    yes: "Use it",
    field: { label: "Key", type: "password" },
  }).then((key) => key?.trim() || null);
}
