"""A mock engine: the whole path without a model."""

import time

import pytest
from openai import OpenAI

from plain_http import post
from stator_process import REPOSITORY, Server, check_sentence, run

# A mock's time per token is kept to within this factor on a busy machine.
SLACK = 5


def answer(server, content, **settings):
    messages = [{"role": "user", "content": content}]
    with OpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        return client.chat.completions.create(model=server.model, messages=messages, **settings)


@pytest.fixture(scope="module")
def mock():
    with Server("--engine", "mock") as server:
        yield server


def test_it_says_words_and_ends_at_max_tokens(mock):
    first = answer(mock, "Hello", max_tokens=500)
    assert (first.choices[0].finish_reason, first.usage.completion_tokens) == ("length", 500)
    letters = first.choices[0].message.content.replace(" ", "")
    assert letters.isascii() and letters.isalpha()


def test_its_text_follows_from_prompt_and_seed(mock):
    def text(content, **settings):
        return answer(mock, content, max_tokens=40, **settings).choices[0].message.content

    greedy = text("Hello", temperature=0)
    assert greedy == text("Hello", temperature=0)
    assert greedy != text("Hello!", temperature=0)
    assert text("Hello", seed=1) == text("Hello", seed=1) != text("Hello", seed=2)


def test_its_steps_take_their_time():
    times = ("--mock-step-us", "2000", "--mock-step-us-per-seq", "1000")
    with Server("--engine", "mock", *times) as server:
        began = time.monotonic()
        answer(server, "Hello", max_tokens=101)
        took = time.monotonic() - began
    assert 0.3 <= took <= 0.3 * SLACK


def test_a_directory_with_nothing_but_a_tokenizer_is_enough(tmp_path):
    bundled = REPOSITORY / "models/demo/tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(bundled.read_bytes())
    with Server(str(tmp_path), "--engine", "mock") as server:
        answered = post(
            server, "/v1/completions", {"model": server.model, "prompt": "Hello", "max_tokens": 5}
        )
        assert answered.json["usage"]["completion_tokens"] == 5


def test_what_makes_no_sense_is_refused(tmp_path):
    check_sentence(run("serve", "--mock-step-us", "5"), 64, "--engine mock")
    check_sentence(run("serve", str(tmp_path), "--engine", "mock"), 64, "tokenizer.json")
    for wrong in ("-1", "nan", "1e99", "x"):
        ended = run("serve", "--engine", "mock", f"--mock-step-us={wrong}")
        assert ended.code == 64 and "expected microseconds" in "\n".join(ended.stderr)


def test_a_request_that_asks_is_told_its_route(mock):
    body = {"model": mock.model, "prompt": "Hello", "max_tokens": 3}

    def route(headers, **fields):
        answered = post(mock, "/v1/completions", body | fields, headers)
        assert answered.status == 200, answered
        return answered.headers["x-stator-route"]

    for stream in (False, True):
        told = route({"x-stator-debug": "1"}, stream=stream)
        assert told.startswith("decode=decode-0;") and "ttft_us=" in told and "otherwise=" in told
        assert route({}, stream=stream) is None
        assert route({"x-stator-debug": "0"}, stream=stream) is None
