"""Tools and structured output through LangChain's methods."""

from typing import Literal

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

HOT = {"temperature": 2, "max_tokens": 400}
QUESTION = "What is the weather in Paris?"


@tool
def get_weather(city: str) -> dict:
    """Get the current weather in a city."""
    return {"temperature": 18, "condition": "sunny"}


class SetLevel(BaseModel):
    """Set the level of a channel."""

    channel: Literal["left", "right"]
    level: int = Field(ge=0, le=11)


class Verdict(BaseModel):
    """How a text feels."""

    sentiment: Literal["positive", "negative", "neutral"]
    confidence: int = Field(ge=0, le=10)
    word: str = Field(max_length=8)


def test_tutorial_loop(chat):
    bound = chat().bind_tools([get_weather])
    messages = [HumanMessage(QUESTION)]
    answer = bound.invoke(messages)
    assert [call["args"] for call in answer.tool_calls] == [{"city": "Paris"}]
    messages.append(answer)
    messages += [get_weather.invoke(call) for call in answer.tool_calls]
    assert "18" in bound.invoke(messages).text


@pytest.mark.parametrize("choice", ["any", "required", "SetLevel", True])
def test_forced_call(chat, choice):
    bound = chat(seed=1, **HOT).bind_tools([SetLevel], tool_choice=choice)
    answer = bound.invoke("Hello")
    assert answer.tool_calls
    for call in answer.tool_calls:
        SetLevel.model_validate(call["args"])


@pytest.mark.parametrize("strict", [True, False])
def test_strict_tool(chat, strict):
    bound = chat(seed=2, **HOT).bind_tools([SetLevel], tool_choice="any", strict=strict)
    for call in bound.invoke("Hello").tool_calls:
        SetLevel.model_validate(call["args"])


def test_streamed_call(chat):
    bound = chat(seed=3, **HOT).bind_tools([SetLevel], tool_choice="SetLevel")
    chunks = list(bound.stream("Hello"))
    (call,) = sum(chunks[1:], chunks[0]).tool_calls
    assert call["name"] == "SetLevel"
    SetLevel.model_validate(call["args"])
    assert call["args"] == bound.invoke("Hello").tool_calls[0]["args"]


def test_no_parallel_calls(chat):
    bound = chat(seed=4, **HOT).bind_tools(
        [get_weather, SetLevel], tool_choice="any", parallel_tool_calls=False
    )
    assert len(bound.invoke("Hello").tool_calls) == 1


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("seed", range(3))
def test_structured_output(chat, method, seed):
    model = chat(seed=seed, **HOT).with_structured_output(Verdict, method=method)
    assert isinstance(model.invoke("How is the weather?"), Verdict)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_with_the_raw_message(chat, method):
    model = chat(seed=5, **HOT).with_structured_output(Verdict, method=method, include_raw=True)
    answer = model.invoke("How is the weather?")
    assert answer["parsing_error"] is None
    assert isinstance(answer["parsed"], Verdict)
    assert answer["raw"].usage_metadata["output_tokens"] > 0


def test_structured_output_as_a_dictionary(chat):
    schema = {**Verdict.model_json_schema(), "title": "Verdict", "description": "A verdict."}
    model = chat(seed=6, **HOT).with_structured_output(schema, method="json_schema")
    Verdict.model_validate(model.invoke("How is the weather?"))


def test_streamed_structured_output(chat):
    model = chat(seed=7, **HOT).with_structured_output(Verdict, method="json_schema")
    *_, last = model.stream("How is the weather?")
    assert isinstance(last, Verdict)


async def test_asynchronous_structured_output(chat):
    model = chat(seed=8, **HOT).with_structured_output(Verdict)
    assert isinstance(await model.ainvoke("How is the weather?"), Verdict)
