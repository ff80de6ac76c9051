// Tool calls: the SDK's runner, forced calls and streams.

import assert from "node:assert/strict";
import test from "node:test";

import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

import { ask, body, client, gather, hot } from "./served.mjs";

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 20 } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const Level = z.object({
  channel: z.enum(["left", "right"]),
  level: z.number().int().min(0).max(11),
});
const level = zodFunction({ name: "set_level", description: "Set a level.", parameters: Level });
const tools = [weather, level];
const QUESTION = "What is the weather in Paris?";

const named = (name) => ({ type: "function", function: { name } });

function checkCall(call) {
  assert.ok(call.id);
  assert.equal(call.type, "function");
  const given = JSON.parse(call.function.arguments);
  if (call.function.name === "set_level") Level.parse(given);
  else assert.deepEqual(Object.keys(given), ["city"]);
}

test("the tutorial's call", async () => {
  const [choice] = (await ask(QUESTION, { tools: [weather] })).choices;
  assert.equal(choice.finish_reason, "tool_calls");
  assert.equal(choice.message.tool_calls.length, 1);
  assert.deepEqual(JSON.parse(choice.message.tool_calls[0].function.arguments), { city: "Paris" });
});

test("the runner calls the function and feeds its result back", async () => {
  const asked = [];
  const tool = {
    type: "function",
    function: {
      ...weather.function,
      parse: JSON.parse,
      function: ({ city }) => {
        asked.push(city);
        return { temperature: 18, condition: "sunny" };
      },
    },
  };
  const runner = client.chat.completions.runTools(body(QUESTION, { tools: [tool] }));
  const final = await runner.finalContent();
  assert.deepEqual(asked, ["Paris"]);
  assert.match(final, /18/);
});

for (const seed of [1, 2, 3]) {
  test(`required, seed ${seed}`, async () => {
    const more = { tools, tool_choice: "required", seed, ...hot };
    const [choice] = (await ask("Hello", more)).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    assert.ok(choice.message.tool_calls.length > 0);
    choice.message.tool_calls.forEach(checkCall);
  });
}

for (const name of ["get_weather", "set_level"]) {
  test(`named ${name}`, async () => {
    const more = { tools, tool_choice: named(name), seed: 2, ...hot };
    const calls = (await ask("Hello", more)).choices[0].message.tool_calls;
    assert.deepEqual(calls.map((call) => call.function.name), [name]);
    calls.forEach(checkCall);
  });
}

test("parsed arguments of a zod tool", async () => {
  const more = { tools: [level], tool_choice: "required", seed: 3, ...hot };
  const answer = await client.chat.completions.parse(body("Hello", more));
  for (const call of answer.choices[0].message.tool_calls) {
    Level.parse(call.function.parsed_arguments);
  }
});

test("deltas of a stream", async () => {
  const more = { tools, tool_choice: named("set_level"), seed: 4, ...hot };
  const [whole] = (await ask("Hello", more)).choices[0].message.tool_calls;
  const chunks = await gather(await ask("Hello", { ...more, stream: true }));
  const deltas = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  assert.equal(deltas.filter((delta) => delta.id).length, 1);
  assert.equal(deltas[0].function.name, "set_level");
  const streamed = deltas.map((delta) => delta.function.arguments ?? "").join("");
  assert.equal(streamed, whole.function.arguments);
});

test("events of the stream's helper", async () => {
  const done = [];
  const more = { tools: [level], tool_choice: "required", seed: 5, ...hot };
  const final = await client.chat.completions
    .stream(body("Hello", more))
    .on("tool_calls.function.arguments.done", (event) => done.push(event.name))
    .finalChatCompletion();
  assert.equal(done.length, final.choices[0].message.tool_calls.length);
  final.choices[0].message.tool_calls.forEach(checkCall);
});

test("none calls nothing", async () => {
  const [choice] = (await ask(QUESTION, { tools, tool_choice: "none" })).choices;
  assert.equal(choice.message.tool_calls?.length ?? 0, 0);
});
