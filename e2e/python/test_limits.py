"""Servers with little room: requests wait, are cut into chunks or preempted, and the text stays."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from plain_http import post, request
from stator_process import Server

PATH = "/v1/completions"
PROMPTS = [list(range(first, first + 20)) for first in range(100, 700, 100)]


def text(server, prompt):
    body = {"model": server.model, "prompt": prompt, "max_tokens": 120}
    answer = post(server, PATH, body | {"temperature": 0, "ignore_eos": True})
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["completion_tokens"] == 120
    return answer.json["choices"][0]["text"]


@pytest.fixture(scope="module")
def expected(server):
    """The texts of a server with room for all, asked one by one."""
    return [text(server, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-num-seqs", 1],
        ["--max-num-batched-tokens", 7],
        ["--block-size", 4],
        ["--kv-blocks", 20],
        ["--threads", 1],
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_little_room_does_not_change_the_text(expected, arguments):
    with Server(*arguments) as server, ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(lambda prompt: text(server, prompt), PROMPTS)) == expected


def test_few_kv_blocks_shorten_the_context():
    with Server("--kv-blocks", 4, "--block-size", 16) as server:
        models = request(server, "GET", "/v1/models").json["data"]
        assert models[0]["max_model_len"] == 64
        body = {"model": server.model, "prompt": [5] * 60}
        assert post(server, PATH, body | {"max_tokens": 4}).status == 200
        refused = post(server, PATH, body | {"max_tokens": 5})
        assert refused.json["error"]["code"] == "context_length_exceeded"
