// Chat completions: what people set and what they read.

import assert from "node:assert/strict";
import test from "node:test";

import { ask, client, model } from "./served.mjs";

const QUESTION = "What is prefill?";

test("answers a question", async () => {
  const answer = await ask(QUESTION);
  assert.match(answer.choices[0].message.content, /prefill/i);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.model, model);
  assert.ok(answer._request_id);
});

test("several turns", async () => {
  const messages = [{ role: "developer", content: "You are a helpful assistant." }];
  for (const question of [QUESTION, "Tell me more.", "What is decode?"]) {
    messages.push({ role: "user", content: question });
    messages.push((await ask(messages)).choices[0].message);
  }
  assert.equal(messages.length, 7);
  assert.ok(messages.at(-1).content);
});

test("text parts", async () => {
  const content = [{ type: "text", text: QUESTION }];
  assert.match((await ask([{ role: "user", content }])).choices[0].message.content, /prefill/i);
});

test("several choices", async () => {
  const { choices, usage } = await ask(QUESTION, { n: 3, temperature: 1, seed: 7, max_tokens: 9 });
  assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
  assert.ok(choices.every((choice) => choice.message.content));
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
});

test("logprobs spell the text", async () => {
  const more = { logprobs: true, top_logprobs: 3, max_tokens: 8 };
  const [choice] = (await ask(QUESTION, more)).choices;
  const tokens = choice.logprobs.content;
  assert.equal(tokens.length, 8);
  assert.equal(tokens.map((token) => token.token).join(""), choice.message.content);
  assert.ok(tokens.every((token) => token.top_logprobs.length === 3));
});

test("stop strings are cut off", async () => {
  const full = (await ask(QUESTION)).choices[0].message.content;
  const cut = (await ask(QUESTION, { stop: [" the"] })).choices[0];
  assert.equal(cut.message.content, full.slice(0, full.indexOf(" the")));
  assert.equal(cut.finish_reason, "stop");
});

test("a seed makes it repeatable", async () => {
  const more = { temperature: 1.3, seed: 5, max_tokens: 20 };
  const [one, two] = await Promise.all([ask(QUESTION, more), ask(QUESTION, more)]);
  assert.equal(one.choices[0].message.content, two.choices[0].message.content);
});

test("length limit", async () => {
  const answer = await ask(QUESTION, { max_completion_tokens: 4 });
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 4);
});

test("text completions by string and by token ids", async () => {
  const complete = (prompt, more = {}) =>
    client.completions.create({ model, prompt, temperature: 0, max_tokens: 6, ...more });
  const echoed = await complete(QUESTION, { echo: true });
  const plain = await complete(QUESTION);
  assert.equal(echoed.choices[0].text, QUESTION + plain.choices[0].text);
  const both = await complete([[5, 6, 7], [8, 9]]);
  assert.deepEqual(both.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(both.usage.prompt_tokens, 5);
});

test("lists models", async () => {
  const names = [];
  for await (const entry of client.models.list()) names.push(entry.id);
  assert.deepEqual(names, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});
