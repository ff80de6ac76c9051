"""Agents: text, streams, tools, structured output, and errors."""

import asyncio
from typing import Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, ToolOutput

QUESTION = "What is prefill?"
COLD = {"temperature": 0.0, "max_tokens": 400}
HOT = {"temperature": 2.0, "max_tokens": 400}


class Verdict(BaseModel):
    """How a text feels."""

    sentiment: Literal["positive", "negative", "neutral"]
    confidence: int = Field(ge=0, le=10)
    word: str = Field(max_length=8)


class Level(BaseModel):
    """A channel's level."""

    channel: Literal["left", "right"]
    level: int = Field(ge=0, le=11)


@pytest.fixture
def agent(chat_model):
    """Makes an agent; greedy unless told otherwise."""

    def make(settings=COLD, **more):
        return Agent(chat_model(), model_settings=settings, retries=0, **more)

    return make


def weather_agent(agent, asked, **more):
    """An agent with the tutorial's tool, which notes what it was asked."""
    made = agent(**more)

    @made.tool_plain
    def get_weather(city: str) -> dict:
        """Get the current weather in a city."""
        asked.append(city)
        return {"temperature": 18, "condition": "sunny"}

    return made


def test_answers_a_question(agent):
    result = agent(instructions="You are helpful.").run_sync(QUESTION)
    assert "prefill" in result.output.lower()
    assert result.usage.output_tokens > 0
    assert result.usage.requests == 1


def test_conversation(agent):
    first = agent().run_sync(QUESTION)
    second = agent().run_sync("Tell me more.", message_history=first.all_messages())
    assert second.output
    assert len(second.all_messages()) == 4


def test_streamed_text_equals_the_whole(agent):
    async def read():
        async with agent().run_stream(QUESTION) as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    deltas = asyncio.run(read())
    assert "".join(deltas) == agent().run_sync(QUESTION).output
    assert len(deltas) > 1


def test_usage_of_a_stream(agent):
    async def read():
        async with agent().run_stream(QUESTION) as result:
            await result.get_output()
            return result.usage

    streamed, whole = asyncio.run(read()), agent().run_sync(QUESTION).usage
    assert streamed.output_tokens == whole.output_tokens
    assert streamed.input_tokens == whole.input_tokens


def test_tool_of_the_tutorial(agent):
    asked = []
    result = weather_agent(agent, asked).run_sync("What is the weather in Paris?")
    assert asked == ["Paris"]
    assert "18" in result.output
    assert result.usage.requests == 2


def test_tool_of_the_tutorial_in_a_stream(agent):
    asked = []

    async def read():
        made = weather_agent(agent, asked)
        async with made.run_stream("What is the weather in Paris?") as result:
            return await result.get_output()

    assert "18" in asyncio.run(read())
    assert asked == ["Paris"]


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
@pytest.mark.parametrize("seed", range(3))
def test_structured_output(agent, kind, seed):
    made = agent(settings={**HOT, "seed": seed}, output_type=kind(Verdict))
    assert isinstance(made.run_sync("How is the weather?").output, Verdict)


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
def test_one_of_several_types(agent, kind):
    types = [ToolOutput(Verdict), ToolOutput(Level)] if kind is ToolOutput else kind([Verdict, Level])
    made = agent(settings={**HOT, "seed": 1, "parallel_tool_calls": False}, output_type=types)
    assert isinstance(made.run_sync("How is the weather?").output, (Verdict, Level))


def test_output_that_is_asked_for_in_words(agent):
    made = agent(output_type=PromptedOutput(Verdict))
    assert isinstance(made.run_sync("How is the weather?").output, Verdict)


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
def test_streamed_structured_output(agent, kind):
    async def read():
        made = agent(settings={**HOT, "seed": 4}, output_type=kind(Verdict))
        async with made.run_stream("How is the weather?") as result:
            return [each async for each in result.stream_output(debounce_by=None)]

    *_, last = asyncio.run(read())
    assert isinstance(last, Verdict)


def test_agents_at_once(agent):
    async def ask_all():
        made = agent()
        return await asyncio.gather(*(made.run(QUESTION) for _ in range(8)))

    assert len({result.output for result in asyncio.run(ask_all())}) == 1


def test_tool_and_structured_output_together(agent):
    """The agent must end with an output tool; which tool it calls before is the model's choice."""
    asked = []
    made = weather_agent(
        agent, asked, settings={**HOT, "seed": 3, "max_tokens": 1000}, output_type=Level
    )
    result = made.run_sync("How loud is it?")
    assert isinstance(result.output, Level)


def test_unknown_model(chat_model):
    with pytest.raises(ModelHTTPError) as caught:
        Agent(chat_model("gpt-absent")).run_sync("Hello")
    assert caught.value.status_code == 404
    assert caught.value.body["code"] == "model_not_found"


def test_wrong_setting(agent):
    with pytest.raises(ModelHTTPError) as caught:
        agent(settings={"temperature": 3.0}).run_sync("Hello")
    assert caught.value.status_code == 400
    assert caught.value.body["param"] == "temperature"
