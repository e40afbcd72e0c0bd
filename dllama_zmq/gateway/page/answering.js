/** Ask for an answer: a conversation and settings to a request, and the stream's chunks to events. Knows no element. */

/**
 * Yield what comes of the model's answer to `conversation`:
 *   {kind: "queued", ahead, note}             so many requests come first, or it waits for what the note says
 *   {kind: "progress", done, total}           tokens of the prompt that are evaluated
 *   {kind: "text", content, reasoning}        more of the answer
 *   {kind: "end", reason}                     "stop" or "length"
 *   {kind: "usage", prompt, cached, completion, perSecond}
 * continues: the last message is the answer's beginning, and goes on. Raises ApiError.
 */
export async function* answer(api, { conversation, parameters, model, continues }, hooks) {
  const isPlain = conversation.plain;
  const body = isPlain
    ? { model, prompt: plainPrompt(conversation), ...withoutVariables(parameters) }
    : { model, messages: messagesOf(conversation), ...parameters };
  if (continues && !isPlain) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  Object.assign(body, { stream_options: { include_usage: true }, return_progress: true });
  let perSecond = 0;
  for await (const chunk of api.stream(isPlain ? "v1/completions" : "v1/chat/completions", body, hooks)) {
    perSecond = chunk.timings?.predicted_per_second ?? perSecond;
    yield* eventsOf(chunk, perSecond);
  }
}

function* eventsOf(chunk, perSecond) {
  const { queued, prompt_progress: progress } = chunk;
  if (queued) yield { kind: "queued", ahead: queued.ahead ?? 0, note: queued.note ?? "" };
  if (progress) yield { kind: "progress", done: progress.processed ?? 0, total: progress.total ?? 0 };
  const choice = chunk.choices?.[0];
  if (choice) {
    const content = choice.delta?.content ?? choice.text ?? "";
    const reasoning = choice.delta?.reasoning_content ?? "";
    if (content || reasoning) yield { kind: "text", content, reasoning };
    if (choice.finish_reason) yield { kind: "end", reason: choice.finish_reason };
  }
  if (chunk.usage) {
    yield {
      kind: "usage",
      prompt: chunk.usage.prompt_tokens ?? 0,
      cached: chunk.usage.prompt_tokens_details?.cached_tokens ?? 0,
      completion: chunk.usage.completion_tokens ?? 0,
      perSecond,
    };
  }
}

/** The messages as the API wants them. An answer that never came is left out, and so is what was only thought. */
function messagesOf({ system, messages }) {
  const said = messages.filter((message) => message.content !== "" || message.role === "user");
  const all = said.map(({ role, content }) => ({ role, content }));
  return system.trim() === "" ? all : [{ role: "system", content: system }, ...all];
}

/** For a model without a chat template: the text so far, with which it goes on. */
export function plainPrompt({ messages }) {
  let text = "";
  for (const { role, content } of messages) {
    if (role === "user" && text !== "" && !/\s$/.test(text) && !/^\s/.test(content)) text += "\n";
    text += content;
  }
  return text;
}

/** Variables are a template's. */
function withoutVariables({ chat_template_kwargs: _, ...parameters }) {
  return parameters;
}
