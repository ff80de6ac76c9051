// Wrong requests: the SDK's error classes with param and code; raw responses and timeouts.

import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

import { ask, baseURL, body, client, model } from "./served.mjs";

const WRONG = [
  [{ temperature: 3 }, "temperature", "decimal_above_max_value"],
  [{ n: 130 }, "n", "integer_above_max_value"],
  [{ max_tokens: "5" }, "max_tokens", "invalid_type"],
  [{ messages: [] }, "messages", "empty_array"],
  [{ stop: ["a", "b", "c", "d", "e"] }, "stop", "array_above_max_length"],
  [{ tool_choice: "required" }, "tool_choice", "invalid_value"],
];

for (const [fields, param, code] of WRONG) {
  for (const stream of [false, true]) {
    test(`wrong ${param}, stream ${stream}`, async () => {
      await assert.rejects(ask("Hello", { ...fields, stream }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.deepEqual([error.status, error.param, error.code], [400, param, code]);
        assert.ok(error.requestID);
        return true;
      });
    });
  }
}

test("unknown model", async () => {
  await assert.rejects(ask("Hello", { model: "gpt-absent" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
});

test("raw response and headers", async () => {
  const { data, response } = await client.chat.completions
    .create(body("Hello", { max_tokens: 2 }), { headers: { "x-request-id": "trace-9" } })
    .withResponse();
  assert.equal(response.headers.get("x-request-id"), "trace-9");
  assert.ok(Number(response.headers.get("openai-processing-ms")) >= 0);
  assert.equal(data.usage.completion_tokens, 2);
});

test("timeout", async () => {
  const endless = body("Hello", { max_tokens: 4000, ignore_eos: true });
  const request = client.chat.completions.create(endless, { timeout: 50 });
  await assert.rejects(request, OpenAI.APIConnectionTimeoutError);
});

test("wrong requests are not retried", async () => {
  let requests = 0;
  const counting = new OpenAI({
    baseURL,
    apiKey: "any",
    maxRetries: 2,
    fetch: (...arguments_) => {
      requests += 1;
      return fetch(...arguments_);
    },
  });
  const wrong = { model, messages: [] };
  await assert.rejects(counting.chat.completions.create(wrong), OpenAI.BadRequestError);
  assert.equal(requests, 1);
});
