"""Tool calls: the SDK's tutorial, forced calls, streams, and the loop that feeds results back."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

HOT = {"temperature": 2, "max_tokens": 400}


def function(name, description, properties, **more):
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
            **more,
        },
    }


WEATHER = function(
    "get_weather",
    "Get the current weather in a city.",
    {"city": {"type": "string", "description": "Name of the city", "maxLength": 20}},
)
CLOCK = function(
    "get_time",
    "Get the current time in a time zone.",
    {"zone": {"type": "string", "enum": ["UTC", "CET", "EST"]}},
)
LEVEL = function(
    "set_level",
    "Set the level of a channel.",
    {
        "channel": {"type": "string", "enum": ["left", "right"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 11},
    },
    strict=True,
)
TOOLS = [WEATHER, CLOCK, LEVEL]
QUESTION = "What is the weather in Paris?"
RESULT = '{"temperature": 18, "condition": "sunny"}'


def named(tool):
    return {"type": "function", "function": {"name": tool["function"]["name"]}}


def check_call(call):
    """The call is one of a known tool, and its arguments fit that tool's schema."""
    schema = next(t["function"] for t in TOOLS if t["function"]["name"] == call.function.name)
    arguments = json.loads(call.function.arguments)
    properties = schema["parameters"]["properties"]
    assert set(arguments) == set(properties)
    for key, value in arguments.items():
        assert value in properties[key].get("enum", [value])
        assert isinstance(value, int if properties[key]["type"] == "integer" else str)
    assert call.type == "function"
    assert call.id


def gathered(chunks):
    """The calls of a stream by index, which must have id, type and name once."""
    calls = {}
    for chunk in chunks:
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or []:
                if delta.index not in calls:
                    assert delta.id
                    assert delta.type == "function"
                    assert delta.function.name
                    calls[delta.index] = [delta.function.name, ""]
                else:
                    assert delta.id is None
                    assert delta.function.name is None
                calls[delta.index][1] += delta.function.arguments or ""
    return [tuple(calls[index]) for index in sorted(calls)]


def test_tutorial_calls_the_tool(ask):
    choice = ask(QUESTION, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert not choice.message.content


def test_tutorial_feeds_the_result_back(ask):
    messages = [{"role": "user", "content": QUESTION}]
    message = ask(messages, tools=[WEATHER]).choices[0].message
    messages.append(message)
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": RESULT}
        for call in message.tool_calls
    ]
    answer = ask(messages, tools=[WEATHER]).choices[0]
    assert answer.finish_reason == "stop"
    assert "18" in answer.message.content


def test_auto_may_answer_in_text(ask):
    choice = ask("What is prefill?", tools=[WEATHER], tool_choice="auto").choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert not choice.message.tool_calls


def test_asks_for_two_cities_at_once(ask):
    choice = ask("What is the weather in Paris and in London?", tools=[WEATHER]).choices[0]
    cities = [json.loads(call.function.arguments)["city"] for call in choice.message.tool_calls]
    assert cities == ["Paris", "London"]


def test_several_calls_in_one_answer(ask, tokenize):
    """Where the model may not end, it calls again, whatever it has learned."""
    (end,) = tokenize("<|im_end|>")
    endless = {"tools": TOOLS, "tool_choice": "required", "logit_bias": {str(end): -100}}
    whole = ask(QUESTION, max_tokens=120, **endless).choices[0].message.tool_calls
    *complete, _cut = whole
    assert len(complete) >= 2
    for call in complete:
        check_call(call)
    streamed = gathered(ask(QUESTION, max_tokens=120, stream=True, **endless))
    assert streamed == [(call.function.name, call.function.arguments) for call in whole]


def test_none_calls_nothing(ask):
    choice = ask(QUESTION, tools=[WEATHER], tool_choice="none").choices[0]
    assert not choice.message.tool_calls
    assert choice.message.content is not None
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(5))
def test_required_calls_a_tool(ask, seed):
    choice = ask("Hello", tools=TOOLS, tool_choice="required", seed=seed, **HOT).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        check_call(call)


@pytest.mark.parametrize("seed", range(3))
def test_one_call_where_parallel_ones_are_forbidden(ask, seed):
    choice = ask(
        "Hello",
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        seed=seed,
        **HOT,
    ).choices[0]
    (call,) = choice.message.tool_calls
    check_call(call)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool["function"]["name"])
def test_named_tool_is_called(ask, tool):
    choice = ask("Hello", tools=TOOLS, tool_choice=named(tool), seed=2, **HOT).choices[0]
    (call,) = choice.message.tool_calls
    assert call.function.name == tool["function"]["name"]
    check_call(call)
    assert choice.finish_reason in ("tool_calls", "stop")


def test_allowed_tools_limit_the_choice(ask):
    allowed = {"mode": "required", "tools": [named(CLOCK), named(LEVEL)]}
    for seed in range(3):
        choice = ask(
            QUESTION,
            tools=TOOLS,
            tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
            seed=seed,
            **HOT,
        ).choices[0]
        assert {call.function.name for call in choice.message.tool_calls} <= {
            "get_time",
            "set_level",
        }


def test_each_choice_calls(ask):
    answer = ask("Hello", tools=TOOLS, tool_choice="required", n=3, seed=5, **HOT)
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(answer.choices) == 3
    assert len(ids) == len(set(ids)) >= 3


def test_stream_of_a_call_equals_the_whole(ask):
    (whole,) = ask(QUESTION, tools=[WEATHER]).choices[0].message.tool_calls
    chunks = list(ask(QUESTION, tools=[WEATHER], stream=True))
    assert gathered(chunks) == [(whole.function.name, whole.function.arguments)]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


@pytest.mark.parametrize("choice", ["required", named(LEVEL)], ids=["required", "named"])
def test_stream_of_a_forced_call_equals_the_whole(ask, choice):
    forced = {"tools": TOOLS, "tool_choice": choice, "seed": 6, **HOT}
    whole = ask("Hello", **forced).choices[0].message.tool_calls
    streamed = gathered(ask("Hello", stream=True, **forced))
    assert streamed == [(call.function.name, call.function.arguments) for call in whole]


def test_markup_of_calls_never_shows(ask):
    for chunk in ask(QUESTION, tools=[WEATHER], stream=True):
        assert "tool_call" not in (chunk.choices[0].delta.content or "")


def test_stream_helper_gathers_calls(client, model):
    with client.chat.completions.stream(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        tools=[LEVEL],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=1,
        **HOT,
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    assert message.tool_calls[0].function.parsed_arguments["channel"] in ("left", "right")


class SetLevel(BaseModel):
    """Set the level of a channel."""

    channel: Literal["left", "right"]
    level: int = Field(ge=0, le=11)


def test_parse_of_a_pydantic_tool(client, model):
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        tools=[openai.pydantic_function_tool(SetLevel)],
        tool_choice="required",
        seed=8,
        **HOT,
    )
    for call in answer.choices[0].message.tool_calls:
        assert isinstance(call.function.parsed_arguments, SetLevel)


def test_history_with_parallel_calls_and_results(ask):
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
        }
        for city in ("Paris", "London")
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": RESULT} for call in calls
    ]
    messages = [
        {"role": "user", "content": "What is the weather in Paris and in London?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
    ]
    assert ask(messages, tools=[WEATHER]).choices[0].message.content


def test_loop_until_the_model_answers(ask):
    """The loop that agents run; forced calls first, so that it does not depend on the weights."""
    messages = [{"role": "user", "content": QUESTION}]
    for choice in ("required", named(CLOCK), "none"):
        message = ask(
            messages, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=200
        ).choices[0].message
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": "done"}
            for call in message.tool_calls or []
        ]
    roles = [m["role"] if isinstance(m, dict) else m.role for m in messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


def test_asynchronous_loop(async_client, model):
    async def loop():
        async with async_client as client:
            return await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Hello"}],
                tools=TOOLS,
                tool_choice="required",
                seed=4,
                **HOT,
            )

    for call in asyncio.run(loop()).choices[0].message.tool_calls:
        check_call(call)


def test_functions_of_old_clients(ask):
    old = {"functions": [LEVEL["function"]], "function_call": {"name": "set_level"}}
    call = ask("Hello", seed=7, extra_body=old, **HOT).choices[0].message.function_call
    assert call.name == "set_level"
    assert json.loads(call.arguments)["channel"] in ("left", "right")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [function("bad name!", "", {})]}, "tools[0].function.name"),
        ({"tools": [WEATHER], "tool_choice": named(CLOCK)}, "tool_choice"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ],
)
def test_wrong_tools_are_refused(ask, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask("Hello", **fields)
    assert caught.value.param.startswith(param)


def test_no_tools_are_none(ask):
    """OpenAI refuses an empty list; clients send one, and servers of open models take it."""
    assert ask(tools=[]).choices[0].message.content == ask().choices[0].message.content


def test_result_for_an_unknown_call_is_refused_or_read(ask):
    """OpenAI refuses it; servers of open models read it. It must be no server error."""
    messages = [{"role": "tool", "tool_call_id": "call_absent", "content": RESULT}]
    try:
        assert ask([{"role": "user", "content": QUESTION}, *messages]).choices
    except openai.BadRequestError as error:
        assert error.param.startswith("messages")
