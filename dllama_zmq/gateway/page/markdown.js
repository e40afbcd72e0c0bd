/**
 * Markdown to blocks: paragraphs, headings, code, quotes, lists, tables, rules. Plain objects; knows no DOM.
 *
 * The rules are CommonMark's and GitHub's tables, as far as models write them; HTML is text, and lists may be indented
 * by two spaces. Blocks nest MOST_DEEP levels, what is deeper is text, so time grows with the length of the text alone.
 */

const MOST_DEEP = 10;
const INDENTED = /^(?: {4}|\t)/;
const FENCE = /^( {0,3})(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)|[ \t]+|$)/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const TASK = /^\[([ xX])\] /;

/** The blocks of `text`; each has `from`, the number of its first line. */
export function parseMarkdown(text) {
  return blocksOf(text.split("\n"), 0);
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    blocks.push({ ...block, from: at });
    at = next;
  }
  return blocks;
}

/** The block that begins at line `at`, and the line after it. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return fenced(lines, at, found);
  if (INDENTED.test(line)) return indented(lines, at);
  if ((found = HEADING.exec(line))) {
    const text = (found[2] ?? "").replace(/(?:^|[ \t])#+[ \t]*$/, "").trim();
    return [{ type: "heading", level: found[1].length, text }, at + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MOST_DEEP && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MOST_DEEP && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function isBlank(line) {
  return line.trim() === "";
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

/** Whether a line ends a paragraph though no blank line is between them. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  if (depth >= MOST_DEEP) return false;
  if (QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return item !== null && item[0].length < line.length && !/^\d/.test(item[2].replace(/^1[.)]/, ""));
}

function fenced(lines, at, [, indent, fence, info]) {
  const code = [];
  let next = at + 1;
  let closed = false;
  while (next < lines.length && !closed) {
    const line = lines[next];
    const trimmed = line.trim();
    closed = trimmed.startsWith(fence) && trimmed === fence[0].repeat(trimmed.length) && indentOf(line) < 4;
    if (!closed) code.push(indent && line.startsWith(indent) ? line.slice(indent.length) : line);
    next += 1;
  }
  const language = info.trim().split(/\s/, 1)[0].slice(0, 40);
  return [{ type: "code", language, text: code.join("\n"), closed }, next];
}

function indented(lines, at) {
  let next = at;
  while (next < lines.length && (isBlank(lines[next]) || INDENTED.test(lines[next]))) next += 1;
  const code = lines.slice(at, next).map((line) => line.replace(INDENTED, ""));
  while (isBlank(code.at(-1))) code.pop();
  return [{ type: "code", language: "", text: code.join("\n"), closed: true }, next];
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  while (next < lines.length && !isBlank(lines[next])) {
    if (!QUOTE.test(lines[next]) && (isBlank(inner.at(-1)) || interrupts(lines, next, depth))) break;
    inner.push(lines[next].replace(QUOTE, ""));
    next += 1;
  }
  return [{ type: "quote", children: blocksOf(inner, depth + 1) }, next];
}

/** A list: items of one kind of mark. What is indented at least two spaces more than the mark belongs to the item. */
function list(lines, at, depth) {
  const kind = kindOf(ITEM.exec(lines[at]));
  const items = [];
  let next = at;
  let loose = false;
  let blankBefore = false;
  while (next < lines.length) {
    const found = ITEM.exec(lines[next]);
    if (!found || kindOf(found) !== kind || (items.length > 0 && RULE.test(lines[next]))) break;
    const width = found[0].length;
    const inner = [lines[next].slice(width)];
    loose ||= blankBefore && items.length > 0;
    next += 1;
    blankBefore = false;
    for (; next < lines.length; next += 1) {
      const line = lines[next];
      if (isBlank(line)) {
        blankBefore = true;
        inner.push("");
        continue;
      }
      const indent = indentOf(line);
      if (indent >= Math.min(width, found[1].length + 2)) inner.push(line.slice(Math.min(indent, width)));
      else if (!blankBefore && !ITEM.test(line) && !interrupts(lines, next, depth)) inner.push(line);
      else break;
      if (blankBefore && indent < width + 4) loose = true;
      blankBefore = false;
    }
    items.push(itemOf(inner, depth));
  }
  const ordered = kind === "." || kind === ")";
  return [{ type: "list", ordered, start: ordered ? parseInt(lines[at].trim(), 10) : 1, loose, items }, next];
}

function kindOf([, , mark]) {
  return mark.at(-1);
}

function itemOf(lines, depth) {
  const task = TASK.exec(lines[0]);
  if (task) lines[0] = lines[0].slice(task[0].length);
  return { checked: task ? task[1] !== " " : null, children: blocksOf(lines, depth + 1) };
}

function isTable(lines, at) {
  const [header, delimiters] = [lines[at], lines[at + 1]];
  if (delimiters === undefined || !header.includes("|") || INDENTED.test(header)) return false;
  if (!DELIMITERS.test(delimiters)) return false;
  return cells(header).length === cells(delimiters).length;
}

function table(lines, at) {
  const header = cells(lines[at]);
  const align = cells(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : "";
  });
  const rows = [];
  let next = at + 2;
  while (next < lines.length && !isBlank(lines[next]) && lines[next].includes("|")) {
    const row = cells(lines[next]);
    rows.push(header.map((_, column) => row[column] ?? ""));
    next += 1;
  }
  return [{ type: "table", align, header, rows }, next];
}

/** The cells of a row: cut at each | that is neither escaped nor in code. */
function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const found = [];
  let from = 0;
  let inCode = false;
  for (let at = 0; at < row.length; at += 1) {
    if (row[at] === "\\") at += 1;
    else if (row[at] === "`") inCode = !inCode;
    else if (row[at] === "|" && !inCode) {
      found.push(row.slice(from, at));
      from = at + 1;
    }
  }
  if (from < row.length) found.push(row.slice(from));
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at, depth) {
  let next = at + 1;
  for (; next < lines.length && !isBlank(lines[next]); next += 1) {
    const underline = UNDERLINE.exec(lines[next]);
    if (underline) {
      const text = textOf(lines.slice(at, next));
      return [{ type: "heading", level: underline[1][0] === "=" ? 1 : 2, text }, next + 1];
    }
    if (interrupts(lines, next, depth)) break;
  }
  return [{ type: "paragraph", text: textOf(lines.slice(at, next)) }, next];
}

function textOf(lines) {
  return lines.map((line) => line.trimStart()).join("\n").trimEnd();
}
