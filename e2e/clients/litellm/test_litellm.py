"""LiteLLM as a library: completion, streams, tools, structured output, errors and its router."""

import asyncio
import json
from typing import Literal

import litellm
import pytest
from pydantic import BaseModel, Field

QUESTION = "What is prefill?"
HOT = {"temperature": 2, "max_tokens": 400}


class Verdict(BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    confidence: int = Field(ge=0, le=10)
    word: str = Field(max_length=8)


def function(name, description, properties):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


WEATHER = function("get_weather", "Get the current weather in a city.", {"city": {"type": "string"}})
LEVEL = function(
    "set_level",
    "Set the level of a channel.",
    {
        "channel": {"type": "string", "enum": ["left", "right"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 11},
    },
)


def text_of(answer):
    return answer.choices[0].message.content


def check_level(call):
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "set_level"
    assert arguments["channel"] in ("left", "right")
    assert 0 <= arguments["level"] <= 11


def test_answers_a_question(complete):
    answer = complete()
    assert "prefill" in text_of(answer).lower()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_history_with_a_system_prompt(complete):
    messages = [{"role": "system", "content": "You are helpful."}]
    messages += [{"role": "user", "content": QUESTION}]
    messages.append(complete(messages).choices[0].message.model_dump())
    messages.append({"role": "user", "content": "Tell me more."})
    assert text_of(complete(messages))


def test_stream_equals_the_whole(complete):
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks)
    assert text_of(rebuilt) == text_of(complete())
    assert rebuilt.usage.completion_tokens == complete().usage.completion_tokens


def test_asynchronous_stream(settings, complete):
    async def read():
        messages = [{"role": "user", "content": QUESTION}]
        stream = await litellm.acompletion(**settings, messages=messages, stream=True)
        return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert "".join(asyncio.run(read())) == text_of(complete())


def test_many_at_once(settings, complete):
    async def ask_all():
        messages = [{"role": "user", "content": QUESTION}]
        return await asyncio.gather(
            *(litellm.acompletion(**settings, messages=messages) for _ in range(8))
        )

    assert {text_of(answer) for answer in asyncio.run(ask_all())} == {text_of(complete())}


def test_choices_seed_and_stop(complete):
    answer = complete(n=2, seed=1, temperature=1, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    full = text_of(complete())
    assert text_of(complete(stop=[" the"])) == full[: full.index(" the")]


def test_logprobs(complete):
    choice = complete(logprobs=True, top_logprobs=2, max_tokens=5).choices[0]
    spelled = "".join(token.token for token in choice.logprobs.content)
    assert spelled == choice.message.content


def test_text_completion(settings):
    answer = litellm.text_completion(**settings, prompt=QUESTION, max_tokens=6)
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 6


def test_function_calling_of_the_tutorial(complete):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = complete(messages, tools=[WEATHER], tool_choice="auto").choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages.append(message)
    messages.append(
        {
            "tool_call_id": call.id,
            "role": "tool",
            "name": call.function.name,
            "content": '{"temperature": 18, "condition": "sunny"}',
        }
    )
    assert "18" in text_of(complete(messages, tools=[WEATHER]))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_level"}}])
def test_forced_call(complete, choice):
    message = complete("Hello", tools=[LEVEL], tool_choice=choice, seed=1, **HOT).choices[0].message
    assert message.tool_calls
    for call in message.tool_calls:
        check_level(call)


def test_streamed_call_equals_the_whole(complete):
    forced = {"tools": [LEVEL], "tool_choice": "required", "seed": 2, **HOT}
    whole = complete("Hello", **forced).choices[0].message.tool_calls
    rebuilt = litellm.stream_chunk_builder(list(complete("Hello", stream=True, **forced)))
    streamed = rebuilt.choices[0].message.tool_calls
    assert [c.function.arguments for c in streamed] == [c.function.arguments for c in whole]


def test_pydantic_model_as_the_format(complete):
    for seed in range(3):
        Verdict.model_validate_json(text_of(complete(response_format=Verdict, seed=seed, **HOT)))


def test_schema_as_the_format(complete):
    schema = {"name": "verdict", "schema": Verdict.model_json_schema()}
    response_format = {"type": "json_schema", "json_schema": schema}
    Verdict.model_validate_json(text_of(complete(response_format=response_format, seed=4, **HOT)))


def test_unknown_model(complete):
    with pytest.raises(litellm.NotFoundError, match="gpt-absent"):
        complete(model="openai/gpt-absent")


def test_wrong_value(complete):
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        complete(temperature=3)


def test_too_long_a_prompt(complete):
    with pytest.raises(litellm.ContextWindowExceededError):
        complete("prefill " * 20_000)


def test_timeout(complete):
    with pytest.raises(litellm.Timeout):
        complete("Hello", timeout=0.05, max_tokens=4000, extra_body={"ignore_eos": True})


def test_router(settings, complete):
    deployment = {key: settings[key] for key in ("model", "api_base", "api_key")}
    router = litellm.Router(
        model_list=[{"model_name": "alias", "litellm_params": deployment}], num_retries=0
    )
    messages = [{"role": "user", "content": QUESTION}]
    answer = router.completion(model="alias", messages=messages, temperature=0)
    assert text_of(answer) == text_of(complete())
