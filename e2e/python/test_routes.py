"""Paths, methods and headers: what every request is answered with, whatever it asks."""

import json

import pytest

from plain_http import JSON, post, request
from stator_process import Server, run

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def hello(server, **fields):
    return {"model": server.model, "prompt": "Hello", "max_tokens": 2, "temperature": 0, **fields}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/completions", {"prompt": "Hello"}),
    ],
)
def test_the_same_without_v1(server, path, body):
    def answer(path):
        fields = {"model": server.model, "max_tokens": 5, "temperature": 0}
        answered = post(server, path, body | fields)
        assert answered.status == 200, answered.body
        return answered.json["choices"]

    assert answer(path) == answer("/v1" + path)


def test_models_without_v1(server):
    assert request(server, "GET", "/models").json == request(server, "GET", "/v1/models").json
    one = request(server, "GET", f"/models/{server.model}")
    assert one.json["id"] == server.model


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/health", "/metrics"])
def test_head_is_get_without_a_body(server, path):
    head, get = request(server, "HEAD", path), request(server, "GET", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["x-request-id"]


# (path, its methods)
PATHS = [
    (CHAT, "POST"),
    ("/chat/completions", "POST"),
    (COMPLETIONS, "POST"),
    ("/v1/models", "GET,HEAD"),
    ("/v1/models/some/name", "GET,HEAD"),
    ("/tokenize", "POST"),
    ("/v1/detokenize", "POST"),
    ("/health", "GET,HEAD"),
    ("/health/ready", "GET,HEAD"),
    ("/metrics", "GET,HEAD"),
]


@pytest.mark.parametrize(("path", "allowed"), PATHS)
def test_options_and_wrong_methods_say_what_is_allowed(server, path, allowed):
    options = request(server, "OPTIONS", path)
    assert (options.status, options.body) == (204, b"")
    assert options.headers["allow"] == allowed
    wrong = request(server, "PATCH", path)
    assert (wrong.status, wrong.headers["allow"]) == (405, allowed)
    assert wrong.json["error"]["code"] == "method_not_supported"
    assert wrong.headers["x-should-retry"] == "false"
    head = request(server, "HEAD", path)
    assert (head.status == 405) == ("HEAD" not in allowed)
    assert head.body == b""


# (method, path, what the message calls it)
NOT_DONE_HERE = [
    ("POST", "/v1/embeddings", "embeddings"),
    ("POST", "/embeddings", "embeddings"),
    ("POST", "/v1/responses", "responses"),
    ("GET", "/v1/responses/resp_1", "responses"),
    ("POST", "/v1/audio/speech", "audio"),
    ("POST", "/v1/audio/transcriptions", "audio"),
    ("POST", "/v1/images/generations", "images"),
    ("GET", "/v1/files", "files"),
    ("POST", "/v1/batches", "batches"),
    ("GET", "/v1/fine_tuning/jobs", "fine-tuning"),
    ("POST", "/v1/moderations", "moderations"),
    ("GET", "/v1/assistants", "assistants"),
    ("POST", "/v1/threads", "threads"),
    ("GET", "/v1/chat/completions/chatcmpl-1", "stored chat completions"),
    ("POST", "/v1/messages", "Anthropic's messages"),
]


@pytest.mark.parametrize(("method", "path", "what"), NOT_DONE_HERE)
def test_what_openai_has_and_this_server_has_not(server, method, path, what):
    answer = request(server, method, path, b"{}" if method == "POST" else None, JSON)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (404, "unknown_url", None)
    assert error["message"].startswith(f"Invalid URL ({method} {path}): this server does not do {what}.")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "path",
    ["/v1/models/%ff%fe", "/v1/models/%zz", "/%00", "/v1/%2e%2e", "//v1/models", "/v1/models/", "/?a=%"],
)
def test_odd_paths_are_not_found(server, path):
    answer = request(server, "GET", path)
    assert answer.status == 404, answer.body
    assert answer.json["error"]["code"] in ("unknown_url", "model_not_found")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", "/metrics", CHAT])
def test_every_response_has_its_headers(server, path):
    answer = request(server, "GET", path)
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["openai-version"] == "2020-10-01"
    assert answer.headers["access-control-allow-origin"] is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [("my-id_1.2:3", True), ("x" * 128, True), ("x" * 129, False), ("two words", False), ("", False)],
)
def test_a_request_id_is_echoed_if_logs_can_show_it(server, given, kept):
    for path, body in [(COMPLETIONS, hello(server)), ("/nowhere", {})]:
        answer = post(server, path, body, {"x-request-id": given})
        got = answer.headers["x-request-id"]
        assert got == given if kept else got.startswith("req_")
        assert answer.headers.get_all("x-request-id") == [got]


def test_a_stream_has_its_headers(server):
    answer = post(server, COMPLETIONS, hello(server, stream=True), {"x-request-id": "mine"})
    expected = {
        "content-type": "text/event-stream",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        "x-request-id": "mine",
        "openai-version": "2020-10-01",
    }
    assert expected.items() <= dict(answer.headers.items()).items()
    assert int(answer.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", CHAT, b"{", JSON, 400),
        ("POST", CHAT, b'{"model":"absent","messages":[{"role":"user","content":"x"}]}', JSON, 404),
        ("GET", "/nowhere", None, {}, 404),
        ("GET", CHAT, None, {}, 405),
        ("POST", CHAT, b"{}", {"content-type": "text/plain"}, 415),
    ],
)
def test_what_a_retry_cannot_help_says_so(server, method, path, body, headers, status):
    answer = request(server, method, path, body, headers)
    assert (answer.status, answer.headers["x-should-retry"]) == (status, "false")
    assert answer.headers["retry-after"] is None


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


@pytest.mark.parametrize(
    ("arguments", "origin", "allowed"),
    [
        ((), "https://a.example", None),
        (("--cors-origin", "https://a.example"), "https://a.example", "https://a.example"),
        (("--cors-origin", "https://a.example"), "https://b.example", None),
        (
            ("--cors-origin", "https://a.example", "--cors-origin", "http://localhost:3000"),
            "http://localhost:3000",
            "http://localhost:3000",
        ),
        (("--cors-origin", "*"), "https://c.example", "*"),
    ],
)
def test_pages_of_named_origins_may_ask(arguments, origin, allowed):
    with Server("--engine", "mock", *arguments) as server:
        preflight = request(server, "OPTIONS", CHAT, headers={"origin": origin, **PREFLIGHT})
        assert preflight.headers["access-control-allow-origin"] == allowed
        assert preflight.headers["x-request-id"]
        if allowed:
            assert preflight.status == 200
            assert "POST" in preflight.headers["access-control-allow-methods"]
            names = preflight.headers["access-control-allow-headers"]
            assert names == PREFLIGHT["access-control-request-headers"]
        for path, body in [(COMPLETIONS, hello(server)), (CHAT, {})]:
            answer = post(server, path, body, {"origin": origin})
            assert answer.headers["access-control-allow-origin"] == allowed
            exposed = answer.headers["access-control-expose-headers"]
            assert ("x-request-id" in exposed.split(",")) if arguments else exposed is None
        assert request(server, "GET", "/v1/models").status == 200


def test_tokens_of_a_text_and_back(server):
    text = "What is prefill? é 日本 <|im_end|>"
    body = {"model": server.model, "prompt": text}
    context = request(server, "GET", f"/v1/models/{server.model}").json["max_model_len"]
    for path in ("/tokenize", "/v1/tokenize"):
        told = post(server, path, body).json
        assert list(told) == ["count", "max_model_len", "tokens", "token_strs"]
        assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), context)
        assert told["token_strs"] is None
    spelled = post(server, "/tokenize", body | {"return_token_strs": True}).json
    assert spelled["tokens"] == told["tokens"]
    assert len(spelled["token_strs"]) == told["count"]
    for path in ("/detokenize", "/v1/detokenize"):
        back = post(server, path, {"model": server.model, "tokens": told["tokens"]})
        assert back.json == {"prompt": text}
    without_model = post(server, "/detokenize", {"tokens": told["tokens"]})
    assert without_model.json == {"prompt": text}


def test_tokens_of_a_conversation_are_those_it_is_prompted_with(server):
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": server.model, "messages": messages}
    told = post(server, "/tokenize", body).json
    usage = post(server, CHAT, body | {"max_tokens": 1}).json["usage"]
    assert told["count"] == usage["prompt_tokens"]
    as_prompt = {"model": server.model, "prompt": told["tokens"], "max_tokens": 9, "temperature": 0}
    continued = post(server, COMPLETIONS, as_prompt).json["choices"][0]["text"]
    answer = post(server, CHAT, body | {"max_tokens": 9, "temperature": 0}).json
    assert continued == answer["choices"][0]["message"]["content"]
    shorter = post(server, "/tokenize", body | {"add_generation_prompt": False}).json
    assert shorter["count"] < told["count"]
    assert told["tokens"][: shorter["count"]] == shorter["tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": 5}, "prompt", "invalid_type"),
        ("/tokenize", {"prompt": "a", "messages": []}, "messages", "invalid_value"),
        ("/tokenize", {"prompt": "word " * (2 << 20)}, "prompt", "context_length_exceeded"),
        ("/tokenize", {"prompt": "a", "model": "absent"}, None, "model_not_found"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": [10**6]}, "tokens[0]", "integer_above_max_value"),
        ("/detokenize", {"tokens": [5] * 10**5}, "tokens", "array_above_max_length"),
    ],
)
def test_tokens_of_nothing_good(server, path, body, param, code):
    answer = post(server, path, {"model": server.model, **body})
    error = answer.json["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert answer.status == (404 if code == "model_not_found" else 400)


def test_a_wrong_origin_is_refused_at_the_start():
    ended = run("serve", "--cors-origin", "a.example/path")
    assert ended.code == 64
    assert any("is no origin" in line for line in ended.stderr), ended


def test_json_is_utf8(server):
    body = json.dumps(hello(server, prompt="é"), ensure_ascii=False).encode()
    assert post(server, COMPLETIONS, body).status == 200
