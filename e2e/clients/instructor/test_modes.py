"""Pydantic models out of chat completions: by tools, JSON schemas and plain JSON."""

import asyncio
from collections.abc import Iterable
from typing import Literal

import openai
import pytest
from instructor import Mode
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, ConfigDict, Field, field_validator

FORCED = [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA]


class Verdict(BaseModel):
    """How a text feels."""

    sentiment: Literal["positive", "negative", "neutral"]
    confidence: int = Field(ge=0, le=10)
    word: str = Field(max_length=8)


class Part(BaseModel):
    name: Literal["wheel", "seat"]
    spare: bool


class Machine(BaseModel):
    """A machine and its parts."""

    kind: Literal["bicycle", "car"]
    owner: Part | None
    parts: list[Part] = Field(min_length=1, max_length=3)


class Anything(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("mode", FORCED)
@pytest.mark.parametrize("seed", range(3))
def test_model_of_the_answer(patched, request_of, mode, seed):
    answer = patched(mode).create(response_model=Verdict, **request_of(seed=seed))
    assert isinstance(answer, Verdict)


@pytest.mark.parametrize("mode", FORCED)
def test_nested_model(patched, request_of, mode):
    answer = patched(mode).create(response_model=Machine, **request_of(seed=1))
    assert 1 <= len(answer.parts) <= 3


@pytest.mark.parametrize("mode", FORCED)
def test_completion_beside_the_model(patched, request_of, mode):
    answer, completion = patched(mode).create_with_completion(
        response_model=Verdict, **request_of(seed=2)
    )
    assert isinstance(answer, Verdict)
    assert completion.usage.total_tokens > 0


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_partial_models_of_a_stream(patched, request_of, mode):
    *_, last = patched(mode).create_partial(response_model=Verdict, **request_of(seed=3))
    Verdict.model_validate(last.model_dump())


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_asynchronous_client(patched, request_of, mode):
    async def create():
        client = patched(mode, asynchronous=True)
        requests = [
            client.create(response_model=Verdict, **request_of(seed=seed)) for seed in range(4)
        ]
        return await asyncio.gather(*requests)

    assert all(isinstance(answer, Verdict) for answer in asyncio.run(create()))


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_simple_type(patched, request_of, mode):
    answer = patched(mode).create(response_model=Literal["yes", "no"], **request_of(seed=4))
    assert answer in ("yes", "no")


def test_json_mode_gives_an_object(patched, request_of):
    request = request_of("Hello", temperature=0, max_tokens=2000)
    assert isinstance(patched(Mode.JSON).create(response_model=Anything, **request), Anything)


def test_json_mode_follows_the_schema_of_its_instructions(patched, request_of):
    answer = patched(Mode.JSON).create(response_model=Verdict, **request_of(temperature=0))
    assert isinstance(answer, Verdict)


def test_a_parallel_tool_is_chosen(patched, request_of):
    class get_weather(BaseModel):  # noqa: N801
        """Get the current weather in a city."""

        city: str = Field(description="Name of the city")

    request = request_of("What is the weather in Paris?", temperature=0)
    client = patched(Mode.PARALLEL_TOOLS)
    assert [c.city for c in client.create(response_model=Iterable[get_weather], **request)] == [
        "Paris"
    ]


def test_validation_that_fails_is_asked_again(patched, request_of):
    """instructor sends the answer back with the error; a rule that nothing meets ends the loop."""

    class Impossible(BaseModel):
        sentiment: Literal["positive"]

        @field_validator("sentiment")
        @classmethod
        def refuse(cls, _):
            raise ValueError("never good enough")

    with pytest.raises(InstructorRetryException) as caught:
        patched(Mode.TOOLS).create(response_model=Impossible, **request_of(max_retries=1))
    assert caught.value.n_attempts == 2


def test_error_of_the_server_reaches_the_caller(patched, request_of):
    request = request_of(model="gpt-absent")
    with pytest.raises((openai.NotFoundError, InstructorRetryException)) as caught:
        patched(Mode.TOOLS).create(response_model=Verdict, **request)
    assert "gpt-absent" in str(caught.value)


def test_without_a_model_it_is_a_plain_chat(patched, request_of):
    request = request_of("What is prefill?", temperature=0)
    answer = patched(Mode.TOOLS).create(response_model=None, **request)
    assert "prefill" in answer.choices[0].message.content.lower()
