/** What the server says of its model. Knows no element. */

/** The first model of /v1/models: {id, facts, context, hasTemplate}; hasTemplate is null where that is not said. */
export async function readModel(api) {
  const { data } = await api.get("v1/models");
  const [{ id, meta = {} }] = data;
  const context = meta.n_ctx ?? meta.n_ctx_train ?? 0;
  const facts = [
    meta.n_params && `${short(meta.n_params)} parameters`,
    meta.size && `${bytes(meta.size)}`,
    context && `${context.toLocaleString("en")} tokens of context`,
    meta.n_vocab && `${meta.n_vocab.toLocaleString("en")} in the vocabulary`,
  ].filter(Boolean);
  return { id, facts, context, hasTemplate: meta.has_chat_template ?? null };
}

/** 6123456 as "6.1 million". */
export function short(count) {
  for (const [unit, size] of [["trillion", 1e12], ["billion", 1e9], ["million", 1e6], ["thousand", 1e3]]) {
    if (count >= size) return `${(count / size).toFixed(count < 10 * size ? 1 : 0)} ${unit}`;
  }
  return String(count);
}

/** 805888 as "806 kB"; kB are 1000 bytes, as everywhere in this project. */
export function bytes(count) {
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${(count / size).toFixed(count < 10 * size ? 2 : count < 100 * size ? 1 : 0)} ${unit}`;
  }
  return `${Math.round(count)} B`;
}
