/** A cluster's status to what the page shows of it: figures for each node and for all. Knows no element and no clock. */

const PHASE = "prediction"; // a step that makes tokens; prompts are told apart where there is nothing else
const STATES = {
  ready: { words: "ready", tone: "good" },
  loaded: { words: "has its weights", tone: "busy" },
  loading: { words: "loading", tone: "busy" },
  absent: { words: "not there", tone: "bad" },
};

/**
 * Everything that the view shows of `status`, the object of `dllama-zmq status --json`. returned: names of nodes that
 * were gone since the look before, and are back so soon that no status says so.
 */
export function figuresOf(status, returned = new Set()) {
  const nodes = status.nodes ?? [];
  const phase = status.recent?.[PHASE] ? PHASE : Object.keys(status.recent ?? {})[0] ?? PHASE;
  const recent = status.recent?.[phase] ?? { steps: 0, tokens: 0, wall_s: 0, slowest: "", nodes: {} };
  const weightBytes = sum(nodes.map((node) => node.weight_bytes));
  const traffic = trafficOf(status);
  const longestS = Math.max(1e-9, ...Object.values(recent.nodes).map((times) => times.compute_s + times.wait_s));
  return {
    phase,
    steps: recent.steps,
    slowest: recent.slowest,
    nodes: nodes.map((node) => ({
      ...nodeFigures(node, weightBytes),
      ...(node.state === "ready" && returned.has(node.name) ? { state: "was gone, is back", tone: "busy" } : {}),
      ...timesOf(recent, node.name, longestS),
      ...bytesPerToken(traffic, node.name),
      isSlowest: node.name === recent.slowest,
    })),
    ...clusterFigures(status),
  };
}

function nodeFigures(node, weightBytes) {
  const { words, tone } = STATES[node.state] ?? { words: node.state, tone: "busy" };
  return {
    name: node.name,
    place: [node.host, node.address].filter(Boolean).join(", "),
    tone,
    state: node.state === "loading" ? loadingWords(node) : words,
    reason: node.reason ?? "",
    share: weightBytes > 0 ? node.weight_bytes / weightBytes : 0,
    weightBytes: node.weight_bytes,
    kvBytes: node.kv_bytes,
    memoryBytes: node.memory_bytes,
    freeBytes: node.free_bytes ?? null,
    threads: node.threads,
  };
}

function loadingWords({ sent_bytes: sent, kept_bytes: kept, total_bytes: total, doing, percent }) {
  if (sent + kept < total) return `loading, ${Math.floor((100 * (sent + kept)) / total)}%`;
  return doing ? `${doing}, ${percent}%` : "loading";
}

/** Milliseconds a step of one node, and its bar's parts beside the longest of all nodes. */
function timesOf({ steps, nodes }, name, longestS) {
  const times = nodes[name];
  if (!times || steps === 0) return { computeMs: null, waitMs: null, waitedForMs: null, computePart: 0, waitPart: 0, why: "" };
  const ms = (seconds) => (1e3 * seconds) / steps;
  const [paused, late] = [times.paused_s, times.messages_s];
  const computing = Math.max(0, times.waited_for_s - paused - late);
  const [why] = [[computing, "it computes longer"], [paused, "its program is paused"], [late, "its messages are late"]]
    .sort((one, other) => other[0] - one[0]);
  return {
    computeMs: ms(times.compute_s),
    waitMs: ms(times.wait_s),
    waitedForMs: ms(times.waited_for_s),
    computePart: times.compute_s / longestS,
    waitPart: times.wait_s / longestS,
    why: why[0] > 0 ? why[1] : "",
  };
}

/** Bytes on the wire in steps, by worker and direction, and the tokens that they were for. */
function trafficOf({ traffic = [], tokens = {}, recent = {} }) {
  const phase = tokens[PHASE] > 0 || !recent ? PHASE : "prompt";
  const rows = {};
  for (const row of traffic) {
    if (row.phase !== phase) continue;
    rows[row.node] ??= { sent: 0, received: 0 };
    rows[row.node][row.direction] += row.wire_bytes;
  }
  return { rows, tokens: tokens[phase] ?? 0 };
}

/** Bytes a token that a node sends and receives; the rows are the root's, so a worker's are the other way round. */
function bytesPerToken({ rows, tokens }, name) {
  if (tokens === 0) return { sentBytes: null, receivedBytes: null };
  const own = rows[name];
  const all = Object.values(rows);
  const [sent, received] = own
    ? [own.received, own.sent]
    : [sum(all.map((row) => row.sent)), sum(all.map((row) => row.received))];
  return { sentBytes: sent / tokens, receivedBytes: received / tokens };
}

function clusterFigures(status) {
  const kv = status.kv ?? {};
  return {
    name: status.name ?? "",
    state: status.state === "ready" ? "ready" : "forming",
    note: status.note ?? "",
    uptimeS: status.uptime_s ?? 0,
    facts: [`sync ${status.sync}`, `kernels ${status.kernels}`, `${status.seq_len} tokens of context`].join(" · "),
    running: status.active ?? 0,
    waiting: status.queued ?? 0,
    requests: status.requests ?? [],
    kvUsed: kv.pages > 0 ? kv.in_use / kv.pages : 0,
    kvKept: kv.pages > 0 ? kv.cached / kv.pages : 0,
    kvWords: `${kv.in_use ?? 0} of ${kv.pages ?? 0} pages, ${kv.cached ?? 0} kept`,
    prefixHits: kv.prompt_tokens > 0 ? kv.cached_tokens / kv.prompt_tokens : null,
    oversubscribed: status.oversubscribed === true && (status.nodes ?? []).length > 1,
  };
}

/** Tokens/s of all answers together between two looks at the cluster, `seconds` apart; null where that is not known. */
export function tokensPerSecond(before, status, seconds) {
  const [old, now] = [before?.sampled, status.sampled];
  if (!old || !now || before.pid !== status.pid || !(seconds > 0)) return null;
  const made = sum(Object.values(now)) - sum(Object.values(old));
  return made < 0 ? null : made / seconds;
}

/** The names of nodes whose process is another one than at the look before. */
export function returnedSince(before, status) {
  const pids = new Map((before?.nodes ?? []).map(({ name, pid }) => [name, pid]));
  const isOther = ({ name, pid }) => pid > 0 && pids.get(name) > 0 && pids.get(name) !== pid;
  return (status.nodes ?? []).filter(isOther).map(({ name }) => name);
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + (number ?? 0), 0);
}
