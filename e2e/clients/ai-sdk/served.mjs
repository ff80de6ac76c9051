// The server that run.py started, as an AI SDK provider; without retries, which would hide failures.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const provider = createOpenAICompatible({
  name: "stator",
  baseURL: process.env.STATOR_BASE_URL,
  apiKey: "any",
  includeUsage: true,
  supportsStructuredOutputs: true,
});

export const name = process.env.STATOR_SERVED_MODEL;
export const model = provider.chatModel(name);
export const absent = provider.chatModel("gpt-absent");
export const completionModel = provider.completionModel(name);

export const cold = { model, temperature: 0, maxRetries: 0 };
// Sampling that follows no instruction, with room for any bounded answer.
export const hot = { model, temperature: 2, maxOutputTokens: 400, maxRetries: 0 };

export async function gather(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}
