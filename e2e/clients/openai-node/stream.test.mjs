// Streams: chunks, the SDK's helper, and readers that stop early.

import assert from "node:assert/strict";
import test from "node:test";

import { ask, body, client, gather, text } from "./served.mjs";

const QUESTION = "What is prefill?";

test("streams the whole text", async () => {
  const chunks = await gather(await ask(QUESTION, { stream: true }));
  assert.equal(text(chunks), (await ask(QUESTION)).choices[0].message.content);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
});

test("usage is one more chunk", async () => {
  const more = { stream: true, stream_options: { include_usage: true } };
  const chunks = await gather(await ask(QUESTION, more));
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(chunks.every((chunk) => chunk.usage === null));
  assert.equal(last.usage.completion_tokens, (await ask(QUESTION)).usage.completion_tokens);
});

test("streamed choices equal whole ones", async () => {
  const more = { n: 2, temperature: 1, seed: 3, max_tokens: 12 };
  const whole = (await ask(QUESTION, more)).choices.map((choice) => choice.message.content);
  const chunks = await gather(await ask(QUESTION, { ...more, stream: true }));
  assert.deepEqual([text(chunks, 0), text(chunks, 1)], whole);
});

test("the helper gathers content and events", async () => {
  let heard = "";
  const runner = client.chat.completions
    .stream(body(QUESTION, { stream_options: { include_usage: true } }))
    .on("content", (delta) => (heard += delta));
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.content, heard);
  assert.equal(await runner.finalContent(), heard);
  assert.ok((await runner.totalUsage()).total_tokens > 0);
});

test("a stream becomes a readable stream and back", async () => {
  const runner = client.chat.completions.stream(body(QUESTION));
  const lines = await new Response(runner.toReadableStream()).text();
  const chunks = lines.trim().split("\n").map((line) => JSON.parse(line));
  assert.equal(text(chunks), (await ask(QUESTION)).choices[0].message.content);
});

test("a reader may stop early", async () => {
  const endless = { stream: true, max_tokens: 3000, ignore_eos: true };
  const stream = await ask(QUESTION, endless);
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert.ok(stream.controller.signal.aborted);
  assert.ok((await ask("Hello", { max_tokens: 1 })).choices);
});

test("an abort signal ends a request", async () => {
  const signal = AbortSignal.timeout(50);
  const endless = body("Hello", { max_tokens: 4000, ignore_eos: true });
  await assert.rejects(client.chat.completions.create(endless, { signal }), /abort/i);
});

test("two readers of one stream", async () => {
  const [left, right] = (await ask(QUESTION, { stream: true })).tee();
  const [one, two] = await Promise.all([gather(left), gather(right)]);
  assert.equal(text(one), text(two));
});
