// generateText and streamText: text, usage, settings, errors.

import assert from "node:assert/strict";
import test from "node:test";

import { APICallError, generateText, streamText } from "ai";

import { absent, cold, completionModel, gather, name } from "./served.mjs";

const prompt = "What is prefill?";

test("generates text", async () => {
  const { text, finishReason, usage, response } = await generateText({ ...cold, prompt });
  assert.match(text, /prefill/i);
  assert.equal(finishReason, "stop");
  assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens);
  assert.equal(response.modelId, name);
  assert.ok(response.headers["x-request-id"]);
});

test("streams the same text", async () => {
  const whole = await generateText({ ...cold, prompt });
  const result = streamText({ ...cold, prompt });
  assert.equal((await gather(result.textStream)).join(""), whole.text);
  assert.equal((await result.usage).outputTokens, whole.usage.outputTokens);
  assert.equal(await result.finishReason, "stop");
});

test("instructions and several turns", async () => {
  const messages = [{ role: "user", content: prompt }];
  const first = await generateText({ ...cold, instructions: "You are helpful.", messages });
  messages.push(...first.response.messages, { role: "user", content: "Tell me more." });
  assert.ok((await generateText({ ...cold, messages })).text);
});

test("length limit", async () => {
  const { finishReason, usage } = await generateText({ ...cold, prompt, maxOutputTokens: 4 });
  assert.equal(finishReason, "length");
  assert.equal(usage.outputTokens, 4);
});

test("stop sequences", async () => {
  const full = (await generateText({ ...cold, prompt })).text;
  const { text } = await generateText({ ...cold, prompt, stopSequences: [" the"] });
  assert.equal(text, full.slice(0, full.indexOf(" the")));
});

test("a seed makes it repeatable", async () => {
  const settings = { ...cold, prompt, temperature: 1.3, seed: 7, maxOutputTokens: 20 };
  const [one, two] = await Promise.all([generateText(settings), generateText(settings)]);
  assert.equal(one.text, two.text);
});

test("text completions", async () => {
  const settings = { ...cold, model: completionModel, prompt, maxOutputTokens: 8 };
  const whole = await generateText(settings);
  assert.equal(whole.usage.outputTokens, 8);
  assert.equal((await gather(streamText(settings).textStream)).join(""), whole.text);
});

test("an abort signal ends a stream", async () => {
  const abort = new AbortController();
  const result = streamText({ ...cold, prompt: "Hello", abortSignal: abort.signal });
  const kinds = [];
  for await (const part of result.fullStream) {
    kinds.push(part.type);
    if (part.type === "text-delta") abort.abort();
  }
  assert.equal(kinds.at(-1), "abort");
});

test("unknown model", async () => {
  await assert.rejects(generateText({ ...cold, model: absent, prompt }), (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 404);
    assert.equal(error.isRetryable, false);
    assert.equal(error.data.error.code, "model_not_found");
    return true;
  });
});

test("a wrong value in a stream's request", async () => {
  const errors = [];
  const result = streamText({
    ...cold,
    prompt,
    temperature: 3,
    onError: ({ error }) => errors.push(error),
  });
  await gather(result.fullStream);
  assert.equal(errors[0].statusCode, 400);
  assert.equal(errors[0].data.error.param, "temperature");
});
