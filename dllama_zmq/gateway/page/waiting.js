/** While an answer says nothing for SILENT_MS: ask the cluster why, and say it. Nothing is silent for longer. */

const SILENT_MS = 2000;
const ASK_S = 3;

export class Silence {
  #timer;
  #last = performance.now();
  #asking = false;

  /** say(words) is called each second while it is silent; "" once it is no more. */
  constructor(api, say) {
    this.api = api;
    this.say = say;
    this.#timer = setInterval(() => this.#look(), 1000);
  }

  /** Something of the answer has come. */
  broken() {
    this.#last = performance.now();
  }

  end() {
    clearInterval(this.#timer);
    this.#timer = null;
  }

  async #look() {
    if (this.#asking || performance.now() - this.#last < SILENT_MS) return;
    this.#asking = true;
    let words;
    try {
      words = reasonOf(await this.api.get("v1/cluster", AbortSignal.timeout(ASK_S * 1000)));
    } catch {
      words = "The server does not answer; waiting for it…";
    }
    this.#asking = false;
    const silentS = (performance.now() - this.#last) / 1000;
    if (this.#timer !== null && silentS * 1000 >= SILENT_MS) this.say(`${words} (${silentS.toFixed(0)} s)`);
  }
}

/** Why an answer does not go on, by the cluster's status. */
export function reasonOf({ state, note, active = 0, queued = 0 }) {
  if (state !== "ready") return `Waiting for the cluster: ${note || "it is forming"}`;
  const others = active > 1 || queued > 0 ? `; ${active} answers running, ${queued} waiting` : "";
  return `The model is computing${others}…`;
}
