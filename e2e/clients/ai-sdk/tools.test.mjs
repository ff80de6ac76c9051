// Tools: the tutorial's loop, forced calls, and streams of calls.

import assert from "node:assert/strict";
import test from "node:test";

import { generateText, stepCountIs, streamText, tool, ToolLoopAgent } from "ai";
import { z } from "zod";

import { cold, gather, hot } from "./served.mjs";

const weather = tool({
  description: "Get the current weather in a city.",
  inputSchema: z.object({ city: z.string().describe("Name of the city") }),
  execute: async () => ({ temperature: 18, condition: "sunny" }),
});
const Level = z.object({
  channel: z.enum(["left", "right"]),
  level: z.number().int().min(0).max(11),
});
const level = tool({ description: "Set a channel's level.", inputSchema: Level });
const prompt = "What is the weather in Paris?";

test("the tutorial's loop", async () => {
  const settings = { ...cold, prompt, tools: { get_weather: weather } };
  const { steps, text } = await generateText({ ...settings, stopWhen: stepCountIs(3) });
  assert.equal(steps[0].finishReason, "tool-calls");
  assert.deepEqual(steps[0].toolCalls.map((call) => call.input), [{ city: "Paris" }]);
  assert.match(text, /18/);
});

test("the tutorial's loop in a stream", async () => {
  const settings = { ...cold, prompt, tools: { get_weather: weather } };
  const result = streamText({ ...settings, stopWhen: stepCountIs(3) });
  const kinds = new Set((await gather(result.fullStream)).map((part) => part.type));
  for (const kind of ["tool-input-start", "tool-input-delta", "tool-call", "tool-result"]) {
    assert.ok(kinds.has(kind), kind);
  }
  assert.match(await result.text, /18/);
});

test("an agent", async () => {
  const agent = new ToolLoopAgent({ ...cold, tools: { get_weather: weather } });
  const { text, steps } = await agent.generate({ prompt });
  assert.equal(steps.length, 2);
  assert.match(text, /18/);
});

for (const seed of [1, 2, 3]) {
  test(`required, seed ${seed}`, async () => {
    const tools = { set_level: level };
    const settings = { ...hot, seed, prompt: "Hello", tools, toolChoice: "required" };
    const { toolCalls, finishReason } = await generateText(settings);
    assert.equal(finishReason, "tool-calls");
    assert.ok(toolCalls.length > 0);
    for (const call of toolCalls) {
      assert.ok(!call.invalid);
      Level.parse(call.input);
    }
  });
}

test("named", async () => {
  const toolChoice = { type: "tool", toolName: "set_level" };
  const tools = { set_level: level, get_weather: weather };
  const settings = { ...hot, seed: 4, prompt: "Hello", tools, toolChoice };
  const { toolCalls } = await generateText(settings);
  assert.deepEqual(toolCalls.map((call) => call.toolName), ["set_level"]);
  Level.parse(toolCalls[0].input);
});

test("a streamed call equals the whole", async () => {
  const settings = { ...hot, seed: 5, prompt: "Hello", tools: { set_level: level } };
  const forced = { ...settings, toolChoice: "required" };
  const whole = await generateText(forced);
  const streamed = streamText(forced);
  const inputs = (calls) => calls.map((call) => call.input);
  assert.deepEqual(inputs(await streamed.toolCalls), inputs(whole.toolCalls));
});

test("none calls nothing", async () => {
  const settings = { ...cold, prompt, tools: { get_weather: weather }, toolChoice: "none" };
  assert.deepEqual((await generateText(settings)).toolCalls, []);
});

test("calls and results of a history", async () => {
  const calls = ["Paris", "London"].map((city) => ({
    type: "tool-call",
    toolCallId: `call_${city}`,
    toolName: "get_weather",
    input: { city },
  }));
  const results = calls.map(({ toolCallId, toolName }) => ({
    type: "tool-result",
    toolCallId,
    toolName,
    output: { type: "json", value: { temperature: 18, condition: "sunny" } },
  }));
  const messages = [
    { role: "user", content: "What is the weather in Paris and in London?" },
    { role: "assistant", content: calls },
    { role: "tool", content: results },
  ];
  assert.ok((await generateText({ ...cold, messages, tools: { get_weather: weather } })).text);
});
