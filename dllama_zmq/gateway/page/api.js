/**
 * The server that this page comes from: requests with the key, errors in plain words, waiting where it asks for that.
 * Knows no element: who uses it gives `askKey` and `onWait`.
 */

import { events } from "./sse.js";

const KEY = "dllama-zmq.key"; // kept until the tab is closed
const MOST_TRIES = 20;
const LONGEST_PAUSE_S = 60;

/** The server said no, or nothing. `status` is HTTP's, 0 where there was no answer; `kind` is the error's type. */
export class ApiError extends Error {
  constructor(message, { status = 0, kind = "", param = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, kind, param, retryAfterS });
  }
}

export class Api {
  #askKey;
  #asking = null;

  /** Called when a person has given a key. */
  onKey = () => {};

  /** askKey(refused): a promise of the key that a person gives, or of null. */
  constructor(askKey) {
    this.#askKey = askKey;
  }

  /** The JSON of `path`. Raises ApiError, at once also where the server asks to come again later. */
  async get(path, signal) {
    const response = await this.#send(path, { signal });
    return response.json();
  }

  /**
   * POST `body` and yield each JSON object of the stream that answers.
   *
   * onWait(seconds, error) is called each second while the server has asked to wait. onSign() at every byte.
   * Raises ApiError; one in mid-stream too, and where the stream ends before it says so.
   */
  async *stream(path, body, { signal, onWait, onSign }) {
    const init = {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    };
    const response = await this.#sendUntilTaken(path, init, onWait);
    onSign?.();
    try {
      for await (const data of events(response.body, onSign)) {
        if (data.trim() === "[DONE]") return;
        const message = JSON.parse(data);
        if (message.error) throw errorFrom(response.status, message);
        yield message;
      }
    } catch (error) {
      if (error instanceof ApiError || error.name === "AbortError") throw error;
      throw new ApiError(`The connection broke in mid-answer (${error.message}).`);
    }
    throw new ApiError("The connection ended before the answer did.");
  }

  async #sendUntilTaken(path, init, onWait) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#send(path, init);
      } catch (error) {
        const comesBack = error instanceof ApiError && (error.status === 429 || error.status === 503);
        if (!comesBack || tries === MOST_TRIES) throw error;
        const seconds = error.retryAfterS ?? Math.min(30, 2 ** (tries - 1));
        for (let left = Math.ceil(Math.min(seconds, LONGEST_PAUSE_S)); left > 0; left -= 1) {
          onWait?.(left, error);
          await pause(1000, init.signal);
        }
      }
    }
  }

  /** One request; a person is asked for the key as often as the server refuses the one there is. */
  async #send(path, init) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...init.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
      let response;
      try {
        response = await fetch(new URL(path, document.baseURI), { ...init, headers, cache: "no-store" });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(`No answer from ${location.host}. Is the cluster up?`);
      }
      if (response.ok) return response;
      const error = errorFrom(response.status, await response.json().catch(() => null), response);
      if (response.status !== 401) throw error;
      if (sessionStorage.getItem(KEY) !== key) continue; // given meanwhile
      this.#asking ??= this.#askKey(key !== null).finally(() => { this.#asking = null; });
      const given = await this.#asking;
      if (!given) throw new ApiError("This server wants an API key.", { status: 401, kind: error.kind });
      sessionStorage.setItem(KEY, given);
      this.onKey();
    }
  }
}

/** The error that a body of OpenAI's shape tells; any other body is told by its status. */
function errorFrom(status, body, response) {
  const told = body?.error ?? {};
  const words = typeof told === "string" ? told : told.message;
  const after = Number.parseFloat(response?.headers.get("Retry-After") ?? "");
  return new ApiError(plainWords(words ?? `The server answered with HTTP ${status} and no reason.`, told), {
    status,
    kind: told.type ?? "",
    param: told.param ?? null,
    retryAfterS: Number.isFinite(after) && after >= 0 ? after : null,
  });
}

function plainWords(words, told) {
  if (told.type !== "exceed_context_size_error") return words;
  const [prompt, context] = [told.n_prompt_tokens, told.n_ctx];
  const sizes = prompt && context ? ` It is ${prompt} tokens long; the model reads ${context}.` : ` (${words})`;
  return `The conversation has become too long for the model.${sizes} Begin a new one, or edit an earlier message.`;
}

/** Wait; AbortError where `signal` comes first. */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const aborted = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", aborted);
      resolve();
    }, ms);
    if (signal?.aborted) aborted();
    signal?.addEventListener("abort", aborted, { once: true });
  });
}
