// Structured output with zod: it parses and validates, whatever the weights would say.

import assert from "node:assert/strict";
import test from "node:test";

import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { ask, body, client, hot } from "./served.mjs";

const Shape = z.object({
  kind: z.enum(["line", "polygon"]),
  label: z.string().max(8),
  filled: z.boolean(),
  parent: z.object({ x: z.number().int().min(0).max(99) }).nullable(),
  points: z.array(z.number().int().min(-9).max(9)).min(1).max(3),
});

const format = zodResponseFormat(Shape, "shape");

for (const seed of [1, 2, 3]) {
  test(`parse, seed ${seed}`, async () => {
    const request = body("Draw me a shape.", { response_format: format, seed, ...hot });
    const [choice] = (await client.chat.completions.parse(request)).choices;
    assert.equal(choice.finish_reason, "stop");
    assert.deepEqual(Shape.parse(choice.message.parsed), JSON.parse(choice.message.content));
  });
}

test("a stream's helper parses", async () => {
  const request = body("Draw me a shape.", { response_format: format, seed: 4, ...hot });
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  Shape.parse(final.choices[0].message.parsed);
});

test("JSON without a schema", async () => {
  const more = { response_format: { type: "json_object" }, max_tokens: 600 };
  const [choice] = (await ask("Answer in JSON.", more)).choices;
  if (choice.finish_reason === "stop") JSON.parse(choice.message.content);
  else assert.equal(choice.finish_reason, "length");
});
