// Structured output with zod: it parses and validates, whatever the weights would say.

import assert from "node:assert/strict";
import test from "node:test";

import { generateObject, generateText, Output, streamObject, streamText } from "ai";
import { z } from "zod";

import { cold, gather, hot } from "./served.mjs";

const prompt = "How is the weather?";
const schema = z.object({
  sentiment: z.enum(["positive", "negative", "neutral"]),
  confidence: z.number().int().min(0).max(10),
  word: z.string().max(8),
  tags: z.array(z.enum(["a", "b"])).max(3),
});

for (const seed of [1, 2, 3]) {
  test(`generateObject, seed ${seed}`, async () => {
    const { object, finishReason } = await generateObject({ ...hot, seed, schema, prompt });
    schema.parse(object);
    assert.equal(finishReason, "stop");
  });
}

test("streamObject", async () => {
  const { partialObjectStream, object } = streamObject({ ...hot, seed: 4, schema, prompt });
  const partial = await gather(partialObjectStream);
  assert.deepEqual(partial.at(-1), await object);
  schema.parse(await object);
});

test("an array of objects", async () => {
  const element = z.object({ side: z.enum(["left", "right"]) });
  const settings = { ...hot, temperature: 0, seed: 5, prompt, maxOutputTokens: 2000 };
  try {
    const { object } = await generateObject({ ...settings, output: "array", schema: element });
    z.array(element).parse(object);
  } catch (error) {
    // An array has no end of its own; a model may fill all the room there is.
    assert.equal(error.finishReason, "length");
  }
});

test("one of a list", async () => {
  const choices = ["sunny", "rainy"];
  const { object } = await generateObject({ ...hot, seed: 6, prompt, output: "enum", enum: choices });
  assert.ok(choices.includes(object));
});

test("output of generateText", async () => {
  const { output } = await generateText({ ...hot, seed: 7, prompt, output: Output.object({ schema }) });
  schema.parse(output);
});

test("output of streamText", async () => {
  const output = Output.object({ schema });
  const result = streamText({ ...hot, seed: 8, prompt, output });
  const partial = await gather(result.partialOutputStream);
  schema.parse(partial.at(-1));
});

test("JSON without a schema", async () => {
  try {
    const settings = { ...cold, prompt: "Answer in JSON.", maxOutputTokens: 600 };
    const { object } = await generateObject({ ...settings, output: "no-schema" });
    assert.equal(typeof object, "object");
  } catch (error) {
    assert.equal(error.finishReason, "length");
  }
});
