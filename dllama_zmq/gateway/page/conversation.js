/** A conversation as data: made, checked where it comes from outside, told as Markdown and JSON. Knows no element. */

export const FORMAT = "dllama-zmq conversations";
const VERSION = 1;
const MOST_MESSAGES = 2000;
const MOST_CHARACTERS = 4_000_000; // of one conversation
const ENDS = ["", "stop", "length", "stopped", "error"];

/** A new and empty one. plain: the model has no chat template, and goes on with the text. */
export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, plain: false, messages: [] };
}

/** A message. end: how an answer ended, "" while it is being written. */
export function newMessage(role, content = "") {
  return { role, content, reasoning: "", end: "", error: "", usage: null };
}

/** crypto.randomUUID is only there over HTTPS and on this computer. */
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The conversation that `value` is, in a form that this page can rely on; null where it is none. */
export function conversationFrom(value) {
  if (!isObject(value) || !Array.isArray(value.messages) || value.messages.length > MOST_MESSAGES) return null;
  const messages = value.messages.map(messageFrom);
  if (messages.includes(null)) return null;
  const system = textOf(value.system);
  const size = messages.reduce((sum, { content, reasoning }) => sum + content.length + reasoning.length, system.length);
  if (size > MOST_CHARACTERS) return null;
  const updated = timeOf(value.updated);
  return {
    id: /^[0-9a-f]{24}$/.test(value.id) ? value.id : newId(),
    title: textOf(value.title).slice(0, 200),
    created: timeOf(value.created, updated),
    updated,
    system,
    plain: value.plain === true,
    messages,
  };
}

function messageFrom(value) {
  if (!isObject(value) || !["user", "assistant"].includes(value.role) || typeof value.content !== "string") return null;
  const isAnswer = value.role === "assistant";
  const end = ENDS.includes(value.end) ? value.end : "";
  return {
    role: value.role,
    content: value.content,
    reasoning: textOf(value.reasoning),
    end: isAnswer && end === "" ? "stopped" : end, // the page was closed in mid-answer
    error: textOf(value.error).slice(0, 2000),
    usage: isAnswer ? usageFrom(value.usage) : null,
  };
}

function usageFrom(value) {
  if (!isObject(value)) return null;
  const number = (given) => (Number.isFinite(given) && given >= 0 ? given : 0);
  const { prompt, cached, completion, perSecond } = value;
  return {
    prompt: number(prompt), cached: number(cached), completion: number(completion), perSecond: number(perSecond),
  };
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function textOf(value) {
  return typeof value === "string" ? value : "";
}

function timeOf(value, other = Date.now()) {
  return Number.isFinite(value) && Math.abs(value) < 8.64e15 ? value : other;
}

/** What a list shows: the name that a person gave, else how it begins. */
export function titleOf({ title, messages }) {
  if (title) return title;
  const first = messages.find((message) => message.role === "user")?.content.trim() ?? "";
  const line = first.replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New conversation";
}

/** Whether anything is in it that is worth keeping. */
export function isEmpty({ messages, title, system }) {
  return messages.length === 0 && title === "" && system === "";
}

/** Conversations as the text of a file, which `imported` reads. */
export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 2) + "\n";
}

/** The conversations of an exported file. Raises Error with words for a person. */
export function imported(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (!isObject(value) || value.format !== FORMAT || !Array.isArray(value.conversations)) {
    throw new Error("This file has no conversations of dllama-zmq.");
  }
  if (value.version > VERSION) throw new Error("This file is of a newer version of dllama-zmq.");
  const found = value.conversations.map(conversationFrom);
  const lost = found.filter((conversation) => conversation === null).length;
  return { conversations: found.filter((conversation) => conversation !== null), lost };
}

/** A conversation to read, in Markdown. */
export function asMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  if (conversation.system) parts.push(`**System prompt**\n\n${conversation.system}`);
  for (const { role, content, reasoning } of conversation.messages) {
    const thought = reasoning ? `> *Thought:* ${reasoning.trim().replaceAll("\n", "\n> ")}\n\n` : "";
    parts.push(`## ${role === "user" ? "You" : "Answer"}\n\n${thought}${content}`);
  }
  return parts.join("\n\n") + "\n";
}

/** A name for the file of a conversation: letters, digits and dashes of its title. */
export function fileName(conversation, ending) {
  const words = titleOf(conversation).toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${words.join("-").slice(0, 50) || "conversation"}.${ending}`;
}
