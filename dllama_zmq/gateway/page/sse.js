/** Server-sent events of a response's body, as the HTML standard (9.2.6) reads them. Knows no JSON and no server. */

const MOST_CHARACTERS = 1 << 24; // of one event; more is no event of ours

/**
 * Yield the data of each event of `stream`, a ReadableStream of bytes. `onSign` is called at every sign of life, and
 * comments are one. An event that the end of the stream cuts off is not yielded, as the standard has it.
 */
export async function* events(stream, onSign = () => {}) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const lines = new Lines();
  let data = [];
  let size = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onSign();
      for (const line of lines.push(decoder.decode(value, { stream: true }))) {
        if (line === "") {
          if (data.length > 0) yield data.join("\n");
          data = [];
          size = 0;
          continue;
        }
        const [name, text] = field(line);
        if (name !== "data") continue;
        size += text.length;
        if (size > MOST_CHARACTERS) throw new Error("an event of the answer is too long");
        data.push(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection closes, and the server stops
  }
}

/** A line's field name and value; a comment has the name "". */
function field(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  const from = line[colon + 1] === " " ? colon + 2 : colon + 1;
  return [line.slice(0, colon), line.slice(from)];
}

/** Text in pieces to lines, which end in LF, CR or both. A long line is joined once, when its end has come. */
class Lines {
  #parts = [];
  #size = 0;
  #afterReturn = false;

  push(text) {
    const lines = [];
    let from = this.#afterReturn && text[0] === "\n" ? 1 : 0;
    if (text !== "") this.#afterReturn = text.endsWith("\r");
    const ends = /\r\n|\n|\r/g;
    ends.lastIndex = from;
    for (let end = ends.exec(text); end !== null; end = ends.exec(text)) {
      lines.push(this.#parts.join("") + text.slice(from, end.index));
      this.#parts = [];
      this.#size = 0;
      from = ends.lastIndex;
    }
    if (from < text.length) {
      this.#parts.push(text.slice(from));
      this.#size += text.length - from;
      if (this.#size > MOST_CHARACTERS) throw new Error("a line of the answer is too long");
    }
    return lines;
  }
}
