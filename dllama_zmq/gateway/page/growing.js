/** Markdown that is being written: what is whole is parsed once, only what may still change again. Knows no DOM. */

import { parseMarkdown } from "./markdown.js";

export class GrowingMarkdown {
  #blocks = null; // of `open`, where it is parsed

  /** The text from the first block that may still change. */
  open = "";

  /** More text at the end. */
  append(text) {
    if (text === "") return;
    this.open += text.replaceAll("\r", "");
    this.#blocks = null;
  }

  /** The blocks of the open text. */
  blocks() {
    this.#blocks ??= parseMarkdown(this.open);
    return this.#blocks;
  }

  /** Forget those blocks of `blocks()` that no further text can change, the first ones; how many these were. */
  settle() {
    const blocks = this.blocks();
    const count = this.#firstOpen(blocks);
    if (count === 0) return 0;
    const line = blocks[count].from;
    let cut = 0;
    for (let passed = 0; passed < line; passed += 1) cut = this.open.indexOf("\n", cut) + 1;
    this.open = this.open.slice(cut);
    this.#blocks = blocks.slice(count).map((block) => ({ ...block, from: block.from - line }));
    return count;
  }

  /**
   * The last block may grow. Where a last line without an end has made it a block of its own, by itself or as a table's
   * second line, both may still become part of the block before.
   */
  #firstOpen(blocks) {
    const last = blocks.length - 1;
    const line = this.open.split("\n").length - 1;
    const mayJoin = !this.open.endsWith("\n") && blocks[last]?.from >= line - 1;
    return Math.max(0, mayJoin ? last - 1 : last);
  }
}
