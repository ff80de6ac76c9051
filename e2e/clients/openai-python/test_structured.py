"""Structured output: what is asked for parses and validates, whatever the weights would say."""

import json
import re
from enum import Enum
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

HOT = {"temperature": 2, "max_tokens": 400}


class Colour(str, Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Point(BaseModel):
    x: int = Field(ge=-100, le=100)
    y: int = Field(ge=-100, le=100)


class Shape(BaseModel):
    """Everything in it is bounded, so that any weights come to its end."""

    kind: Literal["line", "polygon"]
    colour: Colour
    label: str = Field(max_length=8)
    filled: bool
    parent: Point | None
    points: list[Point] = Field(min_length=1, max_length=3)


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sentiment: Literal["positive", "negative", "neutral"]
    confidence: int = Field(ge=0, le=10)


def schema_format(schema, name="answer", strict=True):
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "schema": schema, "strict": strict},
    }


@pytest.mark.parametrize("seed", range(5))
def test_parse_returns_an_instance(client, model, seed):
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Draw me a shape."}],
        response_format=Shape,
        seed=seed,
        **HOT,
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(message.parsed, Shape)
    assert Shape.model_validate_json(message.content) == message.parsed


def test_parse_of_several_choices(client, model):
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "How is the weather?"}],
        response_format=Verdict,
        n=4,
        seed=1,
        **HOT,
    )
    assert [type(choice.message.parsed) for choice in answer.choices] == [Verdict] * 4


def test_stream_helper_parses(client, model):
    with client.chat.completions.stream(
        model=model,
        messages=[{"role": "user", "content": "Draw me a shape."}],
        response_format=Shape,
        seed=3,
        **HOT,
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert isinstance(final.choices[0].message.parsed, Shape)


def test_stream_equals_the_whole(ask):
    sampled = {"response_format": schema_format(Verdict.model_json_schema()), "seed": 9, **HOT}
    whole = ask(**sampled).choices[0].message.content
    streamed = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True, **sampled)]
    assert "".join(streamed) == whole
    Verdict.model_validate_json(whole)


def test_cut_at_the_limit_raises_what_the_sdk_promises(client, model):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=model,
            messages=[{"role": "user", "content": "Draw me a shape."}],
            response_format=Shape,
            max_tokens=3,
        )


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_json_object(ask, temperature):
    answer = ask(
        "Answer in JSON.",
        response_format={"type": "json_object"},
        temperature=temperature,
        seed=4,
        max_tokens=600,
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.finish_reason == "length"
        assert choice.message.content.startswith("{")


def test_text_is_no_constraint(ask):
    plain = ask().choices[0].message.content
    assert ask(response_format={"type": "text"}).choices[0].message.content == plain


SCHEMAS = {
    "enum": ({"enum": ["a", "b", 3, None, True]}, lambda value: value in ["a", "b", 3, None, True]),
    "const": ({"const": {"a": [1]}}, lambda value: value == {"a": [1]}),
    "boolean": ({"type": "boolean"}, lambda value: isinstance(value, bool)),
    "integer range": (
        {"type": "integer", "minimum": 5, "maximum": 17},
        lambda value: 5 <= value <= 17,
    ),
    "array": (
        {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 4},
        lambda value: 2 <= len(value) <= 4,
    ),
    "union": (
        {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
        lambda value: isinstance(value, (bool, str)),
    ),
    "pattern": (
        {"type": "string", "pattern": "^[A-C]{2}-[0-9]{3}$"},
        lambda value: re.fullmatch("[A-C]{2}-[0-9]{3}", value),
    ),
    "date": (
        {"type": "string", "format": "date"},
        lambda value: re.fullmatch(r"\d{4}-\d{2}-\d{2}", value),
    ),
    "reference": (
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Pair",
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/side"}, "right": {"$ref": "#/$defs/side"}},
            "required": ["left", "right"],
            "$defs": {"side": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
        lambda value: {"left", "right"} <= set(value),
    ),
}


@pytest.mark.parametrize("strict", [True, False, None])
@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_holds_at_temperature_two(ask, name, strict):
    schema, holds = SCHEMAS[name]
    if name == "reference":
        schema = {**schema, "additionalProperties": False}
    for seed in range(3):
        choice = ask(response_format=schema_format(schema, strict=strict), seed=seed, **HOT).choices[0]
        assert choice.finish_reason == "stop"
        assert holds(json.loads(choice.message.content)), choice.message.content


def test_adapter_of_a_union(ask):
    adapter = TypeAdapter(Point | Verdict)
    choice = ask(response_format=schema_format(adapter.json_schema()), seed=1, **HOT).choices[0]
    adapter.validate_json(choice.message.content)


EXTENSIONS = {
    "choice": ({"choice": ["yes", "no"]}, r"yes|no"),
    "regex": ({"regex": "[a-f]{4}[0-9]"}, r"[a-f]{4}[0-9]"),
    "grammar": ({"grammar": 'start: "up" | "down" " " /[0-9]{2}/'}, r"up|down [0-9]{2}"),
    "json": ({"json": {"type": "integer", "minimum": 1, "maximum": 3}}, r"[123]"),
}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_structured_outputs_of_the_extra_body(ask, name):
    extension, pattern = EXTENSIONS[name]
    for seed in range(3):
        answer = ask(extra_body={"structured_outputs": extension}, seed=seed, **HOT)
        assert re.fullmatch(pattern, answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        (schema_format({"type": "no-such-type"}), "response_format"),
        (schema_format({"$ref": "#/$defs/absent"}), "response_format"),
        (schema_format({"type": "string", "pattern": "("}), "response_format"),
        (schema_format({"type": "object"}, name="not a name!"), "response_format.json_schema.name"),
    ],
)
def test_wrong_schema_is_refused(ask, response_format, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(response_format=response_format)
    assert caught.value.param.startswith(param)
