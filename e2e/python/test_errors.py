"""What a wrong request is told: a status, and OpenAI's envelope."""

import contextlib
import json

import openai
import pytest

from plain_http import JSON, connected, post, request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BODY_BYTES_MAX = 64 << 20


def hello(**fields):
    """A good chat request with some fields changed; `model` is filled in later."""
    return {"messages": [{"role": "user", "content": "Hello"}], **fields}


def message(**fields):
    return {"messages": [{"role": "user", **fields}]}


def prompt(value="Hello", **fields):
    return {"prompt": value, **fields}


# What stands in the body before JSON is understood: (bytes, code, part of the message).
BODIES = {
    "nothing": (b"", "invalid_json", "parse the JSON body"),
    "half an object": (b'{"model": "m", "messages"', "invalid_json", "parse the JSON body"),
    "single quotes": (b"{'model': 'm'}", "invalid_json", "parse the JSON body"),
    "text after the end": (b"{} {}", "invalid_json", "parse the JSON body"),
    "not a number": (b'{"temperature": NaN}', "invalid_json", "parse the JSON body"),
    "number out of range": (b'{"temperature": 1e999}', "invalid_json", "parse the JSON body"),
    "not UTF-8": (b'{"model": "\xff\xfe"}', "invalid_json", "parse the JSON body"),
    "half a surrogate": (b'{"model": "\\ud800"}', "invalid_json", "parse the JSON body"),
    "10,000 open brackets": (b"[" * 10_000, "invalid_json", "nested too deep"),
    "10,000 open objects": (b'{"a":' * 10_000, "invalid_json", "nested too deep"),
    "a list": (b"[]", "invalid_type", "expected an object, but got an array"),
    "a string": (b'"hello"', "invalid_type", "expected an object, but got a string"),
    "null": (b"null", "invalid_type", "expected an object, but got null"),
}

IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
AUDIO = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]

MANY = [{"role": "user", "content": "x"}] * 8193

MISSING = "missing_required_parameter"
UNSUPPORTED = "unsupported_parameter"
TYPE = "invalid_type"
VALUE = "invalid_value"
TOO_HIGH = "integer_above_max_value"
TOO_LOW = "integer_below_min_value"
EMPTY = "empty_array"

# (path, body, param, code, part of the message)
FIELDS = [
    (CHAT, {}, "messages", MISSING, "Missing required parameter: 'messages'"),
    (CHAT, {"messages": None}, "messages", MISSING, "'messages'"),
    (CHAT, hello(model=None), "model", MISSING, "'model'"),
    (CHAT, hello(model=7), "model", TYPE, "expected a string, but got an integer"),
    (CHAT, {"messages": []}, "messages", EMPTY, "empty array"),
    (CHAT, {"messages": MANY}, "messages", "array_above_max_length", "maximum length 8192"),
    (CHAT, {"messages": "Hello"}, "messages", TYPE, "expected an array, but got a string"),
    (CHAT, {"messages": ["Hello"]}, "messages[0]", TYPE, "expected an object"),
    (CHAT, {"messages": [{"content": "Hello"}]}, "messages[0].role", MISSING, "role"),
    (CHAT, message(role="robot", content="x"), "messages[0].role", VALUE, "'robot'"),
    (CHAT, message(), "messages[0].content", MISSING, "content"),
    (CHAT, message(content=7), "messages[0].content", TYPE, "got an integer"),
    (CHAT, message(content=[]), "messages[0].content", EMPTY, "empty array"),
    (CHAT, message(content=IMAGE), "messages[0].content[0]", UNSUPPORTED, "image"),
    (CHAT, message(content=AUDIO), "messages[0].content[0]", UNSUPPORTED, "audio"),
    (CHAT, hello(temperature=3), "temperature", "decimal_above_max_value", "<= 2, but got 3"),
    (CHAT, hello(temperature=-1), "temperature", "decimal_below_min_value", ">= 0, but got -1"),
    (CHAT, hello(temperature="hot"), "temperature", TYPE, "got a string"),
    (CHAT, hello(top_p=-1), "top_p", "decimal_below_min_value", ">= 0, but got -1"),
    (CHAT, hello(top_p=1.1), "top_p", "decimal_above_max_value", "<= 1, but got 1.1"),
    (CHAT, hello(min_p=2), "min_p", "decimal_above_max_value", "<= 1"),
    (CHAT, hello(top_k=1.5), "top_k", TYPE, "expected an integer, but got a decimal"),
    (CHAT, hello(presence_penalty=3), "presence_penalty", "decimal_above_max_value", "<= 2"),
    (CHAT, hello(frequency_penalty=-3), "frequency_penalty", "decimal_below_min_value", ">= -2"),
    (CHAT, hello(max_tokens="5"), "max_tokens", TYPE, "expected an integer, but got a string"),
    (CHAT, hello(max_tokens=0), "max_tokens", TOO_LOW, ">= 1"),
    (CHAT, hello(max_completion_tokens=-1), "max_completion_tokens", TOO_LOW, ">= 1"),
    (CHAT, hello(max_tokens=10**30), "max_tokens", TOO_HIGH, "above maximum"),
    (CHAT, hello(seed="x"), "seed", TYPE, "expected an integer"),
    (CHAT, hello(seed=2**63), "seed", TOO_HIGH, "above maximum"),
    (CHAT, hello(n=129), "n", TOO_HIGH, "<= 128, but got 129"),
    (CHAT, hello(tool_choice="required"), "tool_choice", VALUE, "'tools'"),
    (CHAT, hello(response_format={"type": "yaml"}), "response_format.type", VALUE, "'yaml'"),
    (CHAT, hello(modalities=["audio"]), "modalities", UNSUPPORTED, "'modalities'"),
    (CHAT, hello(logprobs=True, top_logprobs=21), "top_logprobs", TOO_HIGH, "<= 20, but got 21"),
    (CHAT, hello(top_logprobs=2), "top_logprobs", VALUE, "'logprobs'"),
    (CHAT, hello(logprobs=3), "logprobs", TYPE, "expected a boolean"),
    (CHAT, hello(stop=list("abcde")), "stop", "array_above_max_length", "maximum length 4"),
    (CHAT, hello(stop=""), "stop", VALUE, "empty string"),
    (CHAT, hello(stop=[7]), "stop[0]", TYPE, "expected a string"),
    (CHAT, hello(stream="yes"), "stream", TYPE, "expected a boolean"),
    (CHAT, hello(stream_options={"include_usage": True}), "stream_options", VALUE, "'stream'"),
    (CHAT, hello(logit_bias={"x": 1}), "logit_bias", VALUE, "token id"),
    (CHAT, hello(logit_bias={"5": 101}), "logit_bias.5", "decimal_above_max_value", "<= 100"),
    (CHAT, hello(logit_bias=[5]), "logit_bias", TYPE, "expected an object"),
    (CHAT, hello(logit_bias={"1000000": 5}), "logit_bias", VALUE, "below the vocabulary's size"),
    (COMPLETIONS, {}, "prompt", MISSING, "Missing required parameter: 'prompt'"),
    (COMPLETIONS, prompt(7), "prompt", TYPE, "got an integer"),
    (COMPLETIONS, prompt(""), "prompt", VALUE, "empty"),
    (COMPLETIONS, prompt([]), "prompt", EMPTY, "empty array"),
    (COMPLETIONS, prompt([[]]), "prompt[0]", EMPTY, "empty array"),
    (COMPLETIONS, prompt([5, "x"]), "prompt[1]", TYPE, "expected an integer"),
    (COMPLETIONS, prompt([5, -1]), "prompt[1]", TOO_LOW, ">= 0"),
    (COMPLETIONS, prompt([5, 6, 10**6]), "prompt[2]", TOO_HIGH, "but got 1000000"),
    (COMPLETIONS, prompt([5, 2**40]), "prompt[1]", TOO_HIGH, "above maximum"),
    (COMPLETIONS, prompt(["a", ""]), "prompt[1]", VALUE, "empty"),
    (COMPLETIONS, prompt(max_tokens=-1), "max_tokens", TOO_LOW, ">= 0"),
    (COMPLETIONS, prompt(logprobs=6), "logprobs", TOO_HIGH, "<= 5, but got 6"),
    (COMPLETIONS, prompt(best_of=21), "best_of", TOO_HIGH, "<= 20, but got 21"),
    (COMPLETIONS, prompt(best_of=2, n=3), "best_of", TOO_LOW, ">= 3, but got 2"),
    (COMPLETIONS, prompt(suffix="end"), "suffix", UNSUPPORTED, "'suffix'"),
    (COMPLETIONS, prompt(echo="yes"), "echo", TYPE, "expected a boolean"),
]

# (method, path, status, code, part of the message)
ROUTES = [
    ("GET", CHAT, 405, "method_not_supported", CHAT),
    ("PUT", COMPLETIONS, 405, "method_not_supported", COMPLETIONS),
    ("DELETE", "/v1/models", 405, "method_not_supported", "/v1/models"),
    ("POST", "/health", 405, "method_not_supported", "/health"),
    ("GET", "/", 404, "unknown_url", "/"),
    ("GET", "/v1", 404, "unknown_url", "/v1"),
    ("POST", "/v1/chat/completion", 404, "unknown_url", "/v1/chat/completion"),
    ("POST", "/v1/nothing", 404, "unknown_url", "/v1/nothing"),
]


def error_of(answer, status):
    """The error of an answer, which must have the envelope's shape."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    assert answer.headers["x-request-id"]
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    return error


def check(answer, status, param, code, part):
    error = error_of(answer, status)
    assert (error["param"], error["code"]) == (param, code), error
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.fixture(autouse=True)
def still_answers(server):
    """Whatever a test sends, the server answers good requests afterwards."""
    yield
    answer = post(server, CHAT, {"model": server.model, **hello(max_tokens=1)})
    assert answer.status == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("name", BODIES)
def test_body_that_is_no_json_object(server, path, name):
    body, code, part = BODIES[name]
    check(post(server, path, body), 400, None, code, part)


@pytest.mark.parametrize(("path", "body", "param", "code", "part"), FIELDS)
def test_wrong_field(server, path, body, param, code, part):
    check(post(server, path, {"model": server.model, **body}), 400, param, code, part)


def test_wrong_field_is_found_before_a_stream_begins(server):
    answer = post(server, CHAT, hello(model=server.model, stream=True, temperature=3))
    check(answer, 400, "temperature", "decimal_above_max_value", "temperature")


@pytest.mark.parametrize(("path", "body"), [(CHAT, hello()), (COMPLETIONS, prompt())])
def test_unknown_model(server, path, body):
    answer = post(server, path, {**body, "model": "gpt-absent"})
    check(answer, 404, None, "model_not_found", "`gpt-absent`")


@pytest.mark.parametrize(("method", "path", "status", "code", "part"), ROUTES)
def test_wrong_route(server, method, path, status, code, part):
    check(request(server, method, path), status, None, code, part)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_wrong_content_type(server, content_type):
    answer = request(server, "POST", CHAT, hello(), {"content-type": content_type})
    check(answer, 415, None, "unsupported_content_type", content_type)


def test_content_type_may_have_parameters(server):
    headers = {"content-type": "application/json; charset=utf-8"}
    body = hello(model=server.model, max_tokens=1)
    assert request(server, "POST", CHAT, body, headers).status == 200


def test_body_over_the_limit(server):
    with connected(server) as connection:
        connection.putrequest("POST", CHAT)
        for name, value in JSON.items():
            connection.putheader(name, value)
        connection.putheader("content-length", str(BODY_BYTES_MAX + 1))
        connection.endheaders()
        # Nothing is sent: the declared length is enough to refuse it.
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "request_too_large"


def test_compressed_body(server):
    answer = post(server, CHAT, b"\x1f\x8b", {"content-encoding": "gzip"})
    check(answer, 415, None, "unsupported_content_encoding", "gzip")


@pytest.mark.parametrize(
    "header", [("content-length", str(BODY_BYTES_MAX)), ("transfer-encoding", "chunked")]
)
def test_bodies_that_never_come_hold_nobody_up(server, header):
    with contextlib.ExitStack() as silent:
        for _ in range(3):
            connection = silent.enter_context(connected(server))
            connection.putrequest("POST", CHAT)
            for name, value in [*JSON.items(), header]:
                connection.putheader(name, value)
            connection.endheaders()
        answer = post(server, CHAT, hello(model=server.model, max_tokens=1))
        assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        (CHAT, "messages", lambda text: message(content=text)),
        (COMPLETIONS, "prompt", lambda text: prompt(text)),
    ],
)
def test_text_far_beyond_the_context(server, path, param, body):
    answer = post(server, path, {"model": server.model, **body("word " * (2 << 20))})
    check(answer, 400, param, "context_length_exceeded", "bytes, which is more")


def test_body_of_some_mebibytes_is_read(server):
    answer = post(server, CHAT, hello(model=server.model, max_tokens=1, metadata="x" * (4 << 20)))
    assert answer.status == 200


def too_long(client):
    """More words than the context has tokens."""
    return "word " * client.models.list().data[0].max_model_len


def test_too_long_conversation(client, server):
    body = {"model": server.model, **message(content=too_long(client))}
    check(post(server, CHAT, body), 400, "messages", "context_length_exceeded", "maximum context")


def test_too_long_prompt(client, server):
    body = {"model": server.model, "prompt": too_long(client)}
    check(post(server, COMPLETIONS, body), 400, "prompt", "context_length_exceeded", "maximum")


def test_too_many_tokens_wanted(client, server):
    context = client.models.list().data[0].max_model_len
    body = prompt([5, 6, 7], model=server.model, max_tokens=context)
    answer = post(server, COMPLETIONS, body)
    check(answer, 400, "prompt", "context_length_exceeded", f"requested {context + 3} tokens")


@pytest.mark.parametrize(
    "ignored",
    [
        {"metadata": {"a": "b"}, "store": True, "user": "me", "service_tier": "auto"},
        {"never_heard_of": [1, 2, 3]},
        {"temperature": None, "stop": None, "tools": None, "stream": None, "logit_bias": None},
        {"n": 1, "tools": [], "response_format": {"type": "text"}, "modalities": ["text"]},
        {"stop_token_ids": [1_000_000]},
        {"max_tokens": 3.0, "seed": -1, "top_k": -1},
    ],
)
def test_harmless_fields_are_accepted(server, ignored):
    answer = post(server, CHAT, hello(**{"model": server.model, "max_tokens": 1} | ignored))
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"temperature": 3}, openai.BadRequestError), ({"model": "absent"}, openai.NotFoundError)],
)
def test_sdk_raises_its_own_errors(client, server, fields, kind):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": server.model} | hello(**fields))
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
