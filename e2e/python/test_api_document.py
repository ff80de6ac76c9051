"""docs/api.md and docs/openapi.json say what the server does."""

import json
import re

import jsonschema
import pytest

from plain_http import chunks, post, request
from stator_process import REPOSITORY, Server

DOCUMENT = (REPOSITORY / "docs/api.md").read_text()
OPENAPI = json.loads((REPOSITORY / "docs/openapi.json").read_text())

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "tokenize": "/v1/tokenize",
    "detokenize": "/v1/detokenize",
}
SCHEMAS = {
    "chat": "ChatRequest",
    "completions": "CompletionRequest",
    "tokenize": "TokenizeRequest",
    "detokenize": "DetokenizeRequest",
}


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def tables():
    """All tables: a list of rows each, which are lists of cells; the first row is the heading."""
    found = re.findall(r"(?:^\|.*\n)+", DOCUMENT, re.MULTILINE)
    for text in found:
        rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in text.splitlines()]
        yield [rows[0], *rows[2:]]


def rows_of(*heading):
    """The rows of the tables that begin with these columns."""
    return [
        row for first, *rows in tables() if first[: len(heading)] == list(heading) for row in rows
    ]


ENDPOINTS = rows_of("Endpoint")
PARAMETERS = [[name.strip("`"), *rest] for name, *rest in rows_of("Parameter", "Of")]


def cases():
    """Each parameter row, once for each endpoint that it is of."""
    for name, of, happens, sent, _ in PARAMETERS:
        for endpoint in ("chat", "completions") if of == "both" else (of,):
            yield pytest.param(endpoint, name, happens, sent, id=f"{endpoint}-{name}-{sent[:40]}")


def request_properties(name):
    """The properties of a request's schema."""
    return OPENAPI["components"]["schemas"][name]["properties"]


def smallest(server, endpoint):
    """A request with little more than what is required."""
    model = {"model": server.model}
    return {
        "chat": {**model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
        "completions": {**model, "prompt": "Hello", "max_tokens": 4},
        "tokenize": {},
        "detokenize": {},
    }[endpoint]


@pytest.mark.parametrize(("endpoint", "name", "happens", "sent"), list(cases()))
def test_every_parameter_does_what_its_row_says(server, endpoint, name, happens, sent):
    fields = json.loads("{" + sent.strip("`") + "}")
    answer = post(server, PATHS[endpoint], smallest(server, endpoint) | fields)
    if happens.startswith(("done", "ignored")):
        assert answer.status == 200, answer.body
        if fields.get("stream"):
            assert not [event for event in chunks(answer.body) if "error" in event]
    else:
        code, _, at = re.fullmatch(r"refused: `(\w+)`( at `(.*)`)?", happens).groups()
        error = answer.json["error"]
        assert (answer.status, error["code"], error["param"]) == (400, code, at or name), error


def test_rows_show_the_parameter_that_they_are_about():
    for name, _, happens, sent, _ in PARAMETERS:
        fields = json.loads("{" + sent.strip("`") + "}")
        assert name in fields or name == "model", (name, sent)
        assert happens.startswith(("done", "ignored", "refused: `"))


@pytest.mark.parametrize("endpoint", SCHEMAS)
def test_every_described_parameter_has_a_row(endpoint):
    named = {name for name, of, *_ in PARAMETERS if endpoint in of or of == "both"}
    described = set(request_properties(SCHEMAS[endpoint]))
    assert described <= named
    # The description leaves out what is refused anyway.
    taken = {
        name
        for name, of, happens, *_ in PARAMETERS
        if (of == endpoint or (of == "both" and endpoint in ("chat", "completions")))
        and not happens.startswith("refused")
    }
    assert taken <= described


def test_every_endpoint_has_a_row():
    described = {
        f"{method.upper()} {path}"
        for path, methods in OPENAPI["paths"].items()
        for method in methods
        if method != "head"
    }
    with_aliases = set()
    for endpoint, happens, _ in ENDPOINTS:
        if happens.startswith("done"):
            with_aliases |= {endpoint.strip("`"), endpoint.strip("`").replace(" /v1", " ")}
    assert described == with_aliases


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: row[0].strip("`"))
def test_every_endpoint_does_what_its_row_says(server, row):
    endpoint, happens, _ = row
    method, path = endpoint.strip("`").split()
    path = path.replace("{id}", server.model)
    for path in {path, path.removeprefix("/v1")}:
        body, headers = (b"{}", {"content-type": "application/json"}) if method == "POST" else (None, {})
        answer = request(server, method, path, body, headers)
        if happens.startswith("done"):
            assert answer.status == (400 if method == "POST" else 200), answer.body
        else:
            assert "404 `unknown_url`" in happens
            assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_url")


def test_every_named_test_is_there():
    tests = [row[-1] for first, *rows in tables() if first[-1] == "Test" for row in rows]
    assert len(tests) > 100
    for test in set(tests):
        path, name = test.strip("`").split("::")
        source = (REPOSITORY / path).read_text()
        definition = f"fn {name}(" if path.endswith(".rs") else f"def {name}("
        assert definition in source, test


def bounds():
    """Each bounded number of a request's description: endpoint, name, kind, and its bounds."""
    for endpoint in ("chat", "completions"):
        for name, schema in request_properties(SCHEMAS[endpoint]).items():
            kind = next((kind for kind in ("integer", "number") if kind in schema.get("type", ())), None)
            if kind and name != "stop_token_ids":
                yield pytest.param(endpoint, name, kind, schema, id=f"{endpoint}-{name}")


@pytest.fixture(scope="module")
def mock():
    """A server that is quick with whatever there is room for."""
    with Server("--engine", "mock") as server:
        yield server


@pytest.mark.parametrize(("endpoint", "name", "kind", "schema"), list(bounds()))
def test_described_bounds_are_the_servers(mock, endpoint, name, kind, schema):
    word = {"integer": "integer", "number": "decimal"}[kind]
    for bound, sign, code in [("minimum", -1, "below_min"), ("maximum", 1, "above_max")]:
        if bound not in schema:
            continue
        # Not by 1: near the ends of 64 bits JSON's numbers are not exact.
        beyond = schema[bound] + sign * max(1, abs(schema[bound]))
        answer = post(mock, PATHS[endpoint], smallest(mock, endpoint) | {name: beyond})
        error = answer.json["error"]
        assert (answer.status, error["param"], error["code"]) == (400, name, f"{word}_{code}_value")
        # The bound itself is within. It may be refused for what the context has room for, and what is
        # a limit of the answer is one of its least length too.
        within = smallest(mock, endpoint) | {name: schema[bound]}
        if name == "min_tokens":
            del within["max_tokens"]
        if name == "top_logprobs":
            within["logprobs"] = True
        answer = post(mock, PATHS[endpoint], within)
        assert answer.status == 200 or answer.json["error"]["code"] == "context_length_exceeded"
    for wrong in ("x", [1]):
        answer = post(mock, PATHS[endpoint], smallest(mock, endpoint) | {name: wrong})
        assert (answer.json["error"]["code"], answer.json["error"]["param"]) == ("invalid_type", name)


STREAMED = [
    ("chat", {}, "ChatCompletionChunk"),
    ("chat", {"n": 2, "logprobs": True, "top_logprobs": 2}, "ChatCompletionChunk"),
    ("chat", {"tools": TOOLS, "tool_choice": "required", "max_tokens": 200}, "ChatCompletionChunk"),
    ("chat", {"stream_options": {"include_usage": True}}, "ChatCompletionChunk"),
    ("completions", {"n": 2, "logprobs": 2}, "CompletionChunk"),
    ("completions", {"stream_options": {"include_usage": True}}, "CompletionChunk"),
]


@pytest.mark.parametrize(("endpoint", "fields", "chunk"), STREAMED)
def test_chunks_are_as_described(server, endpoint, fields, chunk):
    schema = {"$ref": f"#/components/schemas/{chunk}", "components": OPENAPI["components"]}
    answer = post(server, PATHS[endpoint], smallest(server, endpoint) | fields | {"stream": True})
    assert answer.status == 200, answer.body
    for each in chunks(answer.body):
        jsonschema.validate(each, schema, jsonschema.Draft202012Validator)


def test_the_description_is_served(server):
    answer = request(server, "GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == OPENAPI
