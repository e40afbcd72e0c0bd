/** The page: makes its parts, and shows the one that the address names: #chat, #chat/ID or #cluster. */

import { Api, ApiError } from "./api.js";
import { Chat } from "./chat.js";
import { ClusterView } from "./cluster.js";
import { newConversation } from "./conversation.js";
import { askKey } from "./dialogs.js";
import { byId, h, setText } from "./dom.js";
import { Library } from "./library.js";
import { readModel } from "./model.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";

const AGAIN_MS = 3000;

const api = new Api(askKey);
const library = new Library();
const settings = new Settings();
const model = { id: "default", facts: [], context: 0, hasTemplate: null };

function say(words) {
  const toast = byId("toast");
  toast.replaceChildren(words);
  toast.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { toast.hidden = true; }, 8000);
}

/** Ask for the model until the server says it. */
async function learnModel() {
  try {
    Object.assign(model, await readModel(api));
    setText(byId("model"), model.id);
    setText(byId("brief"), model.id);
    byId("model-facts").replaceChildren(...model.facts.flatMap((fact) => [h("span", {}, fact), " · "]).slice(0, -1));
    const { current } = library;
    if (current.messages.length === 0 && current.plain !== (model.hasTemplate === false)) {
      current.plain = !current.plain;
      chat.show();
    }
  } catch (error) {
    setText(byId("model-facts"), error.message);
    const isFinal = error instanceof ApiError && [401, 403, 404].includes(error.status);
    if (!isFinal) setTimeout(learnModel, AGAIN_MS);
  }
}

function route() {
  const [view, id = ""] = location.hash.slice(1).split("/");
  const isCluster = view === "cluster";
  byId("chat").hidden = isCluster;
  byId("cluster").hidden = !isCluster;
  byId("menu").hidden = isCluster;
  document.querySelectorAll("nav a").forEach((link) => {
    if (link.hash === (isCluster ? "#cluster" : "#chat")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  document.title = isCluster ? "Cluster – dllama-zmq" : "dllama-zmq";
  setText(byId("skip"), isCluster ? "Skip to the nodes" : "Skip to the message");
  cluster.show(isCluster);
  closeMenu();
  if (isCluster) return;
  if (view !== "chat" || library.current.id !== id) library.open(id);
  if (!matchMedia("(pointer: coarse)").matches) byId("prompt").focus();
}

/** The address of an open conversation names it, as soon as it is worth keeping. */
function nameInAddress() {
  const { current, conversations } = library;
  const hash = conversations.includes(current) ? `#chat/${current.id}` : "#chat";
  if (!location.hash.startsWith("#cluster") && location.hash !== hash) history.replaceState(null, "", hash);
}

function closeMenu() {
  document.body.classList.remove("menu-open");
  byId("menu").setAttribute("aria-expanded", "false");
}

function toggleMenu() {
  const isOpen = document.body.classList.toggle("menu-open");
  byId("menu").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) byId("new").focus();
}

/** Light, dark, or as the system has it, in turn. */
function turnTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("dllama-zmq.theme", root.dataset.theme);
  } catch {
    // it lasts until the tab is closed
  }
}

function showSettings() {
  settings.open(library.current, () => {
    library.changed(library.current);
    chat.show();
    countSettings();
  });
}

function countSettings() {
  setText(byId("settings-open"), settings.nSet > 0 ? `Settings (${settings.nSet})` : "Settings");
}

library.make = () => ({ ...newConversation(settings.system), plain: model.hasTemplate === false });
await library.load();
const chat = new Chat({ api, library, settings, model });
const cluster = new ClusterView(api);
new Sidebar(library, say);

library.addEventListener("change", nameInAddress);
library.addEventListener("warning", ({ detail }) => say(detail));
addEventListener("hashchange", route);
byId("theme").addEventListener("click", turnTheme);
byId("menu").addEventListener("click", toggleMenu);
byId("shade").addEventListener("click", closeMenu);
byId("settings-open").addEventListener("click", showSettings);
byId("settings-close").addEventListener("click", () => byId("settings").close());
byId("new").addEventListener("click", () => {
  library.open();
  route();
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId(location.hash === "#cluster" ? "nodes-title" : "prompt").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("menu-open")) {
    closeMenu();
    byId("menu").focus();
  }
});

api.onKey = () => {
  if (model.facts.length === 0) learnModel();
  cluster.wake();
};

countSettings();
route();
chat.show();
if (library.lost > 0) say(h("span", {}, `${library.lost} kept conversation(s) cannot be read; they are left as they are.`));
learnModel();
