"""Answers that must match a schema do, whatever the weights: random ones here, at temperature 2.

STATOR_CONSTRAINED_RUNS sets how many answers are drawn; `make e2e` draws 1,000."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from openai import BadRequestError, OpenAI

import random_model
from schemas import Schemas, is_beginning_of_json
from stator_process import Server

RUNS = int(os.environ.get("STATOR_CONSTRAINED_RUNS", "60"))
# One in so many answers is given too few tokens, to be cut off.
CUT_OFF = 8
AT_ONCE = 8
QUESTION = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def noise(demo_directory, tmp_path_factory):
    """A server whose model says noise, and a client of it."""
    model = random_model.make(demo_directory, tmp_path_factory.mktemp("random") / "noise")
    with Server(model) as server:
        client = OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120)
        yield server.model, client


def ask(noise, stream=False, **fields):
    """An answer's text and why it ended."""
    model, client = noise
    create = client.chat.completions.create
    fields = {"model": model, "messages": QUESTION, "temperature": 2} | fields
    if not stream:
        choice = create(**fields).choices[0]
        return choice.message.content, choice.finish_reason
    text, finish = "", None
    for chunk in create(stream=True, **fields):
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    return text, finish


def as_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "drawn", "strict": True, "schema": schema}}


def draw(noise, seed):
    """One answer to a drawn schema: how it ended, and what is wrong with it, if anything."""
    schema, length = Schemas(seed).draw()
    is_cut_off = seed % CUT_OFF == 0
    tokens = seed % 40 + 1 if is_cut_off else length + 2
    fields = {"response_format": as_format(schema), "max_tokens": tokens, "seed": seed}
    text, finish = ask(noise, stream=seed % 2 == 1, **fields)
    kind = "cut off" if is_cut_off else finish
    if finish == "length":
        return kind, None if is_beginning_of_json(text) else f"no beginning of JSON: {text!r}"
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(json.loads(text), schema, format_checker=checker)
    except (ValueError, jsonschema.ValidationError) as error:
        return kind, f"{error} in {text!r} for {json.dumps(schema)}"
    return kind, None


def test_drawn_schemas(noise):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        drawn = list(pool.map(lambda seed: draw(noise, seed), range(RUNS)))
    assert [problem for _, problem in drawn if problem] == []
    ends = Counter(kind for kind, _ in drawn)
    print(f"\n{RUNS} answers: {dict(ends)}")
    assert ends["stop"] >= 0.95 * (ends["stop"] + ends["length"]), ends


def test_same_seed_same_answer_streamed_or_not(noise):
    schema, length = Schemas(3).draw()
    fields = {"response_format": as_format(schema), "max_tokens": length + 2, "seed": 11}
    assert ask(noise, **fields) == ask(noise, stream=True, **fields)


@pytest.mark.parametrize(
    "fields, matches",
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, lambda text: text in ("red", "green")),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]+x"}}, lambda text: text[3] == "-"),
        ({"structured_outputs": {"grammar": 'start: "a" ("b" | "c")'}}, {"ab", "ac"}.__contains__),
        ({"guided_choice": ["one", "two"]}, {"one", "two"}.__contains__),
        ({"response_format": {"type": "json_object"}}, lambda text: text.startswith("{")),
    ],
)
def test_every_kind_of_constraint(noise, fields, matches):
    extra = {name: value for name, value in fields.items() if name != "response_format"}
    known = {name: value for name, value in fields.items() if name == "response_format"}
    text, finish = ask(noise, extra_body=extra, max_tokens=200, seed=5, **known)
    assert finish in ("stop", "length") and matches(text), text


def test_completions_are_constrained_too(noise):
    model, client = noise
    extra = {"structured_outputs": {"choice": ["red", "green"]}}
    answer = client.completions.create(model=model, prompt="A", n=4, temperature=2, extra_body=extra)
    assert {choice.text for choice in answer.choices} <= {"red", "green"}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("forecast", "history")
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice, names",
    [
        ("required", {"forecast", "history"}),
        ({"type": "function", "function": {"name": "history"}}, {"history"}),
    ],
)
def test_calls_that_must_come_do(noise, choice, names, stream):
    model, client = noise
    for seed in range(5):
        fields = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 2000, "seed": seed}
        fields |= {"model": model, "messages": QUESTION, "temperature": 2}
        if stream:
            with client.chat.completions.stream(**fields) as events:
                answer = events.get_final_completion().choices[0]
        else:
            answer = client.chat.completions.create(**fields).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert not answer.message.content
        assert len(answer.message.tool_calls) >= 1
        for call in answer.message.tool_calls:
            assert call.function.name in names
            parameters = TOOLS[0]["function"]["parameters"]
            jsonschema.validate(json.loads(call.function.arguments), parameters)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
        {"type": "object", "properties": {"a": {"type": "strang"}}},
        {"type": "string", "pattern": "("},
        {"$ref": "https://example.com/schema.json"},
        {"type": "string", "pattern": "(a{0,900}){0,900}(b{0,900}){0,900}", "minLength": 100_000},
    ],
)
def test_what_cannot_be_followed_is_refused(noise, schema):
    with pytest.raises(BadRequestError) as refused:
        ask(noise, response_format=as_format(schema), max_tokens=5)
    assert refused.value.param or refused.value.code
