/** Sampling settings and the system prompt: the form, and where they are kept. Empty means: as the server has it. */

import { byId, h } from "./dom.js";

const KEPT = "dllama-zmq.settings";

const NUMBERS = [
  { name: "temperature", label: "Temperature", hint: "0 takes the likeliest token", min: 0, max: 10, step: 0.05 },
  { name: "top_p", label: "Top-p", hint: "likeliest tokens up to this sum", min: 0, max: 1, step: 0.01 },
  { name: "top_k", label: "Top-k", hint: "this many tokens; 0 is all", min: 0, max: 1_000_000, step: 1 },
  { name: "min_p", label: "Min-p", hint: "relative to the likeliest", min: 0, max: 1, step: 0.01 },
  { name: "repeat_penalty", label: "Repetition penalty", hint: "1 is none", min: 0.01, max: 10, step: 0.01 },
  { name: "presence_penalty", label: "Presence penalty", hint: "0 is none", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "0 is none", min: -2, max: 2, step: 0.1 },
  { name: "max_tokens", label: "Longest answer", hint: "in tokens", min: 1, max: 10_000_000, step: 1 },
  { name: "seed", label: "Seed", hint: "same seed, same answer", min: 0, max: 2 ** 53 - 1, step: 1 },
];
const MOST_STOPS = 16;
const THINKING = { on: true, off: false };

export class Settings {
  #values = load();

  /** What requests say of sampling; what is not set is left out. */
  get parameters() {
    const { stop, thinking } = this.#values;
    const set = Object.fromEntries(NUMBERS.filter(({ name }) => name in this.#values).map(({ name }) => [name, this.#values[name]]));
    if (stop) set.stop = stop;
    if (thinking in THINKING) set.chat_template_kwargs = { enable_thinking: THINKING[thinking] };
    return set;
  }

  /** The system prompt that new conversations begin with. */
  get system() {
    return this.#values.system ?? "";
  }

  /** How many sampling settings are not the server's. */
  get nSet() {
    return Object.keys(this.parameters).length;
  }

  /** Show the form for `conversation`; `changed` is called when it is closed, where anything is another. */
  open(conversation, changed) {
    const form = byId("settings-form");
    const before = JSON.stringify([this.#values, conversation.system]);
    this.#fill(form, conversation.system);
    const dialog = byId("settings");
    const read = () => {
      this.#values = valuesOf(form);
      if (form.elements.keep.checked) this.#values.system = form.elements.system.value;
      conversation.system = form.elements.system.value;
      keep(this.#values);
      if (JSON.stringify([this.#values, conversation.system]) !== before) changed();
    };
    form.onreset = (event) => {
      event.preventDefault();
      this.#values = this.#values.system ? { system: this.#values.system } : {};
      this.#fill(form, form.elements.system.value);
    };
    dialog.addEventListener("close", read, { once: true });
    dialog.showModal();
  }

  #fill(form, system) {
    const fields = byId("sampling");
    if (!fields.hasChildNodes()) fields.append(...NUMBERS.map(numberField));
    for (const { name } of NUMBERS) form.elements[name].value = this.#values[name] ?? "";
    form.elements.stop.value = (this.#values.stop ?? []).join("\n");
    form.elements.thinking.value = this.#values.thinking ?? "";
    form.elements.system.value = system;
    form.elements.keep.checked = system === this.system;
  }
}

function numberField({ name, label, hint, min, max, step }) {
  const id = `set-${name}`;
  return h("div", { class: "field" },
    h("label", { for: id }, label),
    h("input", {
      id, name, type: "number", inputmode: step < 1 ? "decimal" : "numeric", min, max, step: "any",
      placeholder: "default", "aria-describedby": `${id}-hint`,
    }),
    h("small", { id: `${id}-hint` }, hint));
}

function valuesOf(form) {
  const given = {};
  for (const { name } of NUMBERS) {
    if (form.elements[name].value !== "") given[name] = Number(form.elements[name].value);
  }
  return checked({ ...given, stop: form.elements.stop.value.split("\n"), thinking: form.elements.thinking.value });
}

/** The settings in `value` that are what they should be; numbers are brought within their bounds. */
export function checked(value) {
  const good = {};
  for (const { name, min, max, step } of NUMBERS) {
    const given = value?.[name];
    if (!Number.isFinite(given)) continue;
    const within = Math.min(max, Math.max(min, given));
    good[name] = step === 1 ? Math.round(within) : within;
  }
  const isText = (given) => typeof given === "string" && given !== "";
  const stops = Array.isArray(value?.stop) ? value.stop.filter(isText).slice(0, MOST_STOPS) : [];
  if (stops.length > 0) good.stop = stops;
  if (Object.hasOwn(THINKING, value?.thinking ?? "")) good.thinking = value.thinking;
  if (isText(value?.system)) good.system = value.system.slice(0, 100_000);
  return good;
}

function load() {
  try {
    return checked(JSON.parse(localStorage.getItem(KEPT) ?? "{}"));
  } catch {
    return {}; // no storage, or not what this page had put there
  }
}

function keep(values) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(values));
  } catch {
    // they last until the tab is closed
  }
}
