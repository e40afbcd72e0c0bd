import assert from "node:assert/strict";
import { test } from "node:test";

import { GrowingMarkdown } from "../page/growing.js";
import { parseInline, plainText, safeAddress } from "../page/inline.js";
import { parseMarkdown } from "../page/markdown.js";

const TEXT = (text) => ({ type: "text", text });

const DOCUMENT = `# A story

Once **upon** a time
there was \`code\`.

- one
  - one and a half
    1. deep
- two

  still two

1. first

1. second
   \`\`\`py
   print("- no item")

   \`\`\`

> quoted
lazily
> - in a quote

| a | b |
|---|:-:|
| 1 | \`x|y\` |
| 2 |
Title
===
text
| c | d |
| - | - |
***
    indented

    code

~~~
never closed
- not an item
`;

function withoutLines(blocks) {
  return JSON.parse(JSON.stringify(blocks, (key, value) => (key === "from" ? undefined : value)));
}

/** Numbers from 0 to 1, the same at every run. */
function* drawn(seed) {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 32;
  }
}

/** `text` in pieces of up to `most` characters to a GrowingMarkdown: its blocks in the end, and how long its open text ever was. */
function grown(text, sizes, most = 12) {
  const growing = new GrowingMarkdown();
  const settled = [];
  let longest = 0;
  for (let at = 0; at < text.length; ) {
    const size = 1 + Math.floor(sizes.next().value * most);
    growing.append(text.slice(at, at + size));
    longest = Math.max(longest, growing.open.length);
    at += size;
    const blocks = growing.blocks();
    settled.push(...blocks.slice(0, growing.settle()));
  }
  return { blocks: [...settled, ...growing.blocks()], longest };
}

test("blocks are what CommonMark and GitHub's tables say", () => {
  const types = parseMarkdown(DOCUMENT).map((block) => block.type);
  assert.deepEqual(types, [
    "heading", "paragraph", "list", "list", "quote", "table", "heading", "paragraph", "table", "rule", "code", "code",
  ]);
  const [, , bullets, numbers, quote, table] = parseMarkdown(DOCUMENT);
  assert.deepEqual(bullets.items.map(({ children }) => children.map(({ type }) => type)), [
    ["paragraph", "list"], ["paragraph", "paragraph"],
  ]);
  assert.equal(numbers.items[1].children[1].text, 'print("- no item")\n');
  assert.equal(quote.children[1].type, "list");
  assert.deepEqual(table, { ...table, header: ["a", "b"], align: ["", "center"], rows: [["1", "`x|y`"], ["2", ""]] });
});

test("a fence that is never closed is code to the end of the text", () => {
  const [code] = parseMarkdown("```html\n<script>\n# no heading");
  assert.deepEqual(withoutLines(code), { type: "code", language: "html", text: "<script>\n# no heading", closed: false });
});

test("a text in pieces becomes the blocks of the whole text, wherever it is cut", () => {
  const whole = withoutLines(parseMarkdown(DOCUMENT));
  for (let seed = 1; seed <= 300; seed += 1) {
    assert.deepEqual(withoutLines(grown(DOCUMENT, drawn(seed)).blocks), whole, `seed ${seed}`);
  }
});

test("marks in any order become the same blocks in pieces as at once", () => {
  const marks = [
    "- ", "1. ", "2. ", "\n", "\n", "\n\n", "  ", "    ", "> ", "|", "a", "---", "| - |", "```", "~~~", "===", "# ", "*",
    "b|c", "-|-", ":-", "\t", "[x] ",
  ];
  const numbers = drawn(1);
  for (let round = 0; round < 5000; round += 1) {
    const text = Array.from({ length: 15 }, () => marks[Math.floor(numbers.next().value * marks.length)]).join("");
    assert.deepEqual(withoutLines(grown(text, numbers, 3).blocks), withoutLines(parseMarkdown(text)), JSON.stringify(text));
  }
});

test("only the block that grows is parsed again, however long the text has become", () => {
  const { longest } = grown(DOCUMENT.replace(/~~~[^]*/, "end\n\n").repeat(50), drawn(1));
  assert.ok(longest < 200, `${longest} characters were open`);
});

test("emphasis, code and breaks nest as they are written", () => {
  assert.deepEqual(parseInline("a **b *c*** `d*` ~~e~~ f_g_h  \ni"), [
    TEXT("a "),
    { type: "strong", children: [TEXT("b "), { type: "em", children: [TEXT("c")] }] },
    TEXT(" "),
    { type: "code", text: "d*" },
    TEXT(" "),
    { type: "del", children: [TEXT("e")] },
    TEXT(" f_g_h"),
    { type: "break" },
    TEXT("i"),
  ]);
  assert.deepEqual(parseInline("2 * 3 * 4, **open, \\*no\\*"), [TEXT("2 * 3 * 4, **open, *no*")]);
});

test("links lead to http, https and mailto alone", () => {
  const bad = [
    "javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\tscript:alert(1)", "data:text/html,<p>",
    "vbscript:x", "file:///etc/passwd", "blob:http://a/b", "//evil.example", "/v1/models", "#chat", "", "http://", "ht tp://a",
  ];
  for (const address of bad) {
    assert.equal(safeAddress(address), null, address);
    for (const text of [`[x](${address})`, `[x](<${address}>)`, `![x](${address})`, `<${address}>`]) {
      assert.doesNotMatch(JSON.stringify(parseInline(text)), /"href":"(?!https?:\/\/|mailto:)/, text);
    }
  }
  for (const address of ["http://a.example/", "https://a.example/?b=c#d", "mailto:a@b.example"]) {
    assert.equal(safeAddress(address), address);
    const [link] = parseInline(`[x](${address} "title")`);
    assert.deepEqual(link, { type: "link", href: address, children: [TEXT("x")] });
  }
});

test("an address in running text is a link without the sentence's punctuation", () => {
  const [, link, rest] = parseInline("(see https://a.example/b_(c).)");
  assert.equal(link.href, "https://a.example/b_(c)");
  assert.equal(rest.text, ".)");
  const [named] = parseInline("[https://a.example](https://b.example)");
  assert.deepEqual([named.href, named.children], ["https://b.example/", [TEXT("https://a.example")]]);
});

test("an image is a link that says so, and HTML is text", () => {
  const [image] = parseInline("![a cat](https://a.example/cat.png)");
  assert.deepEqual(image, { type: "link", href: "https://a.example/cat.png", children: [TEXT("image: a cat")] });
  const html = '<img src=x onerror=alert(1)><svg onload=alert(1)><script>alert(1)</script>';
  assert.deepEqual(parseInline(html), [TEXT(html)]);
});

test("nothing nests without a bound", () => {
  const depth = (nodes) => Math.max(0, ...nodes.map((node) => (
    1 + depth([...(node.children ?? []), ...(node.items ?? []).flatMap((item) => item.children)]))));
  const deep = {
    lists: Array.from({ length: 1000 }, (_, level) => `${"  ".repeat(level)}- x`).join("\n"),
    "lists in a line": "- ".repeat(1000),
    quotes: `${"> ".repeat(1000)}x`,
    both: "> - ".repeat(1000),
  };
  for (const [what, text] of Object.entries(deep)) assert.ok(depth(parseMarkdown(text)) <= 11, what);
  for (const [opens, closes] of [["**a _b ", "c_ d** "], ["*", "*"], ["*a ", "b* "], ["[", "](http://a.example)"], ["~~a *b ", "c* d~~ "]]) {
    assert.ok(depth(parseInline(opens.repeat(1000) + closes.repeat(1000))) <= 33, opens);
  }
});

test("no text takes more time than its length: what is hard for a parser ends, and no word is lost", () => {
  const size = 200_000;
  const hard = [
    "*", "**a ", "[", "![", "](", "[](", "[a](b ", "`", "` `` ", "_a *b ", "<", "~~", "\\", "](<", "https://x.y/)))",
    "mailto:", '[a]("', "&", "*a*", "> ", "- ", "1. ", "  - a\n", "```\n", "| a ", "|\n|-|\n", "a\n---\n", "-\n\n",
    Array.from({ length: 3000 }, (_, length) => "`".repeat(length + 1)).join(" "),
    "    x\n", "- a\n\n", "> a\n", "- - - a\n", "a|b\n-|-\n", "\t", "a b ".repeat(500),
  ];
  for (const piece of hard) {
    const start = performance.now();
    const text = piece.repeat(Math.ceil(size / piece.length));
    parseMarkdown(text);
    const nodes = parseInline(text);
    assert.ok(performance.now() - start < 10_000, JSON.stringify(piece)); // a quadratic one takes minutes
    if (/^[a-z ]+$/.test(piece)) assert.equal(plainText(nodes), text);
  }
});
