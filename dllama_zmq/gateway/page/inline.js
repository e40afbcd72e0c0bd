/**
 * Markdown within a paragraph: emphasis, code, links. Text to a tree of plain objects; knows no DOM.
 *
 * Time grows with the length of the text, whatever is in it: at most MOST_OPEN things are open at once, and no pattern
 * looks ahead without a bound. HTML is text. Images become links: nothing is loaded that nobody asked for.
 */

const MOST_OPEN = 32;
const PLAIN = /[^\\`*_~[\]!<&\nhm]+/y;
const DESTINATION = /\([ \n]{0,9}(?:<([^<>\n]{0,2000})>|([^\s<>()]{0,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,500}){0,9}))(?:[ \n]{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?[ \n]{0,9}\)/y;
const BARE_URL = /(?:https?:\/\/|mailto:)[^\s<>"`[\]]{1,2000}/y;
const ANGLED = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BREAK = /<br ?\/?>/iy;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#39);/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SCHEMES = ["http:", "https:", "mailto:"];

/** Where a link may lead: the address as the browser reads it, or null for any scheme but http, https and mailto. */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return SCHEMES.includes(url.protocol) ? url.href : null;
  } catch {
    return null; // relative: it would lead into this server
  }
}

/** The tree of `text`: {type: "text", text} | {type: "code", text} | {type: "break"} | {type, children, href}. */
export function parseInline(text) {
  const frames = [{ mark: "", count: 0, nodes: [] }];
  const lastRuns = new Map(); // where the last run of ` of each length begins
  for (const run of text.matchAll(/`+/g)) lastRuns.set(run[0].length, run.index);
  let at = 0;

  const say = (words) => addText(frames.at(-1).nodes, words);
  const match = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };

  while (at < text.length) {
    const plain = match(PLAIN);
    if (plain) {
      say(plain[0]);
      at += plain[0].length;
      continue;
    }
    const c = text[at];
    let found = null;
    if (c === "\\") {
      const next = text[at + 1] ?? "";
      if (next === "\n") frames.at(-1).nodes.push({ type: "break" });
      else say(/[!-/:-@[-`{-~]/.test(next) ? next : c + next);
      at += 2;
    } else if (c === "\n") {
      const nodes = frames.at(-1).nodes;
      if (text[at - 1] === " " && text[at - 2] === " " && nodes.at(-1)?.type === "text") {
        nodes.at(-1).text = nodes.at(-1).text.trimEnd();
        nodes.push({ type: "break" });
      } else {
        say("\n");
      }
      at += 1;
    } else if (c === "`") {
      at = code(text, at, frames.at(-1).nodes, lastRuns);
    } else if (c === "*" || c === "_" || c === "~") {
      at = emphasis(text, at, frames);
    } else if (c === "[" || (c === "!" && text[at + 1] === "[")) {
      const mark = c === "[" ? "[" : "![";
      if (frames.length < MOST_OPEN) frames.push({ mark, count: 1, nodes: [] });
      else say(mark);
      at += mark.length;
    } else if (c === "]") {
      at = closeBracket(text, at, frames);
    } else if (c === "<" && (found = match(ANGLED))) {
      addLink(frames.at(-1).nodes, found[1], found[1]);
      at += found[0].length;
    } else if (c === "<" && (found = match(BREAK))) {
      frames.at(-1).nodes.push({ type: "break" });
      at += found[0].length;
    } else if (c === "&" && (found = match(ENTITY))) {
      say(ENTITIES[found[1]]);
      at += found[0].length;
    } else if ((c === "h" || c === "m") && !/\w/.test(text[at - 1] ?? "") && (found = match(BARE_URL))) {
      const url = withoutEnd(found[0]);
      addLink(frames.at(-1).nodes, url, url);
      at += url.length;
    } else {
      say(c);
      at += 1;
    }
  }
  flatten(frames, 0);
  return frames[0].nodes;
}

function addText(nodes, text) {
  if (text === "") return;
  const last = nodes.at(-1);
  if (last?.type === "text") last.text += text;
  else nodes.push({ type: "text", text });
}

function addLink(nodes, address, text) {
  const href = safeAddress(address);
  if (href === null) addText(nodes, text);
  else nodes.push({ type: "link", href, bare: true, children: [{ type: "text", text }] });
}

/** What frames above `keep` hold becomes part of it, and their marks become text: nothing has closed them. */
function flatten(frames, keep) {
  for (const { mark, count, nodes } of frames.splice(keep + 1)) {
    addText(frames[keep].nodes, mark.repeat(count));
    for (const node of nodes) add(frames[keep].nodes, node);
  }
}

function add(nodes, node) {
  if (node.type === "text") addText(nodes, node.text);
  else nodes.push(node);
}

/** A run of ` at `at`, and the code up to the next run of the same length; where to go on. */
function code(text, at, nodes, lastRuns) {
  let end = at;
  while (text[end] === "`") end += 1;
  const length = end - at;
  if (lastRuns.get(length) > at) {
    const runs = /`+/g;
    runs.lastIndex = end;
    for (let run = runs.exec(text); run !== null; run = runs.exec(text)) {
      if (run[0].length !== length) continue;
      let inner = text.slice(end, run.index).replaceAll("\n", " ");
      if (inner[0] === " " && inner.at(-1) === " " && inner.trim() !== "") inner = inner.slice(1, -1);
      nodes.push({ type: "code", text: inner });
      return runs.lastIndex;
    }
  }
  addText(nodes, text.slice(at, end));
  return end;
}

/** A run of *, _ or ~ at `at`: closes what it can, then opens. Where to go on. */
function emphasis(text, at, frames) {
  const mark = text[at];
  let end = at;
  while (text[end] === mark) end += 1;
  const [before, after] = [text[at - 1] ?? "\n", text[end] ?? "\n"];
  const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const canOpen = mark === "_" ? left && (!right || PUNCTUATION.test(before)) : left;
  const canClose = mark === "_" ? right && (!left || PUNCTUATION.test(after)) : right;
  let count = end - at;
  while (canClose && count > 0) {
    const opener = frames.findLastIndex((frame) => frame.mark === mark);
    const used = opener < 0 ? 0 : Math.min(2, count, frames[opener].count);
    if (used === 0 || (mark === "~" && used !== 2)) break;
    flatten(frames, opener);
    const frame = frames[opener];
    const type = mark === "~" ? "del" : used === 2 ? "strong" : "em";
    const node = { type, children: frame.nodes };
    frame.count -= used;
    count -= used;
    if (frame.count > 0) {
      frame.nodes = [node];
    } else {
      frames.pop();
      frames.at(-1).nodes.push(node);
    }
  }
  if (count > 0) {
    if (canOpen && frames.length < MOST_OPEN) frames.push({ mark, count, nodes: [] });
    else addText(frames.at(-1).nodes, mark.repeat(count));
  }
  return end;
}

/** A ] at `at`: a link or an image where an address follows, else text. Where to go on. */
function closeBracket(text, at, frames) {
  const opener = frames.findLastIndex((frame) => frame.mark === "[" || frame.mark === "![");
  if (opener < 0) {
    addText(frames.at(-1).nodes, "]");
    return at + 1;
  }
  DESTINATION.lastIndex = at + 1;
  const found = DESTINATION.exec(text);
  const href = found ? safeAddress(found[1] ?? found[2]) : null;
  const isImage = frames[opener].mark === "![";
  if (found) flatten(frames, opener);
  const [frame] = frames.splice(opener, 1);
  if (!found) { // the bracket is text, and what was opened after it stays open
    addText(frames[opener - 1].nodes, frame.mark);
    for (const node of frame.nodes) add(frames[opener - 1].nodes, node);
    addText(frames.at(-1).nodes, "]");
    return at + 1;
  }
  const nodes = frames.at(-1).nodes;
  const words = isImage ? [{ type: "text", text: `image: ${plainText(frame.nodes) || "without a name"}` }] : frame.nodes;
  const isLink = href !== null && !words.some(hasLink);
  if (isLink) nodes.push({ type: "link", href, children: words.map(withoutBareLinks) });
  else for (const node of words) add(nodes, node);
  return DESTINATION.lastIndex;
}

/** Whether there is a link in it that is written as one: links hold no links, and the inner one counts. */
function hasLink(node) {
  return (node.type === "link" && !node.bare) || (node.children ?? []).some(hasLink);
}

function withoutBareLinks(node) {
  if (node.bare) return node.children[0];
  return node.children ? { ...node, children: node.children.map(withoutBareLinks) } : node;
}

/** The words of a tree, without marks. */
export function plainText(nodes) {
  return nodes.map((node) => node.text ?? (node.type === "break" ? "\n" : plainText(node.children))).join("");
}

/** An address in running text, without the punctuation that ends the sentence. */
function withoutEnd(url) {
  let end = url.length;
  let closing = url.split(")").length - url.split("(").length;
  for (;;) {
    const last = url[end - 1];
    if (last === ")" && closing > 0) closing -= 1;
    else if (!/[.,;:!?'*_~]/.test(last)) return url.slice(0, end);
    end -= 1;
  }
}
