// The server that run.py started, and the client to ask it with; without retries, which would
// hide failures.

import OpenAI from "openai";

export const baseURL = process.env.STATOR_BASE_URL;
export const model = process.env.STATOR_SERVED_MODEL;
export const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 120_000 });

// Sampling that follows no instruction, with room for any bounded answer.
export const hot = { temperature: 2, max_tokens: 400 };

export function body(content, more = {}) {
  const messages = typeof content === "string" ? [{ role: "user", content }] : content;
  return { model, messages, temperature: 0, ...more };
}

/** A chat completion, greedy unless told otherwise. */
export function ask(content, more = {}) {
  return client.chat.completions.create(body(content, more));
}

export async function gather(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

export function text(chunks, index = 0) {
  return chunks
    .flatMap((chunk) => chunk.choices)
    .filter((choice) => choice.index === index)
    .map((choice) => choice.delta.content ?? "")
    .join("");
}
