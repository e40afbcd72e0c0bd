/** Build elements. Text is only ever text: nothing in this page is parsed as HTML. */

/**
 * An element: h("a", { href: "…", class: "…", onclick: f }, "text", child, …). Properties that are null, undefined or
 * false are left out; true is an empty attribute; functions are listeners; children that are null are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A button that says what it does. */
export function button(label, onclick, properties = {}) {
  return h("button", { type: "button", onclick, ...properties }, label);
}

/** The element of that id, which is in index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** Set an element's text, where it is another one: what does not change is not announced again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Put `text` on the clipboard; whether that worked. Over plain HTTP only the old way is there. */
export async function copy(text) {
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // not allowed: the old way may be
  }
  const focused = document.activeElement;
  const field = h("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
  field.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return copied;
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(text, label = "Copy", properties = {}) {
  const made = button(label, async () => {
    setText(made, (await copy(text())) ? "Copied" : "Not allowed");
    setTimeout(() => setText(made, label), 1500);
  }, properties);
  return made;
}

/** Let the browser keep `text` as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
