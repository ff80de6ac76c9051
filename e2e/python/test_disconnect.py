"""Clients that go away before their answer is complete."""

import json

import pytest

from plain_http import JSON, connected, post, streaming

PATH = "/v1/completions"
TIMES = 20


@pytest.fixture
def endless(server):
    """A request that takes far longer than its client stays."""
    return {"model": server.model, "prompt": [5, 6, 7], "max_tokens": 8000, "ignore_eos": True}


@pytest.fixture(autouse=True)
def still_answers(server):
    """The server gives the same answer before and after."""

    def answer():
        body = {"model": server.model, "prompt": "What is prefill?", "temperature": 0}
        return post(server, PATH, body).json["choices"][0]["text"]

    before = answer()
    yield
    assert answer() == before


def test_client_leaves_in_mid_stream(server, endless):
    for _ in range(TIMES):
        with streaming(server, PATH, endless) as response:
            assert response.readline().startswith(b"data: ")


def test_client_leaves_before_the_answer(server, endless):
    for _ in range(TIMES):
        with connected(server) as connection:
            connection.request("POST", PATH, json.dumps(endless), JSON)


def test_client_leaves_in_mid_request(server):
    for _ in range(TIMES):
        with connected(server) as connection:
            connection.putrequest("POST", PATH)
            connection.putheader("content-type", "application/json")
            connection.putheader("content-length", "1000")
            connection.endheaders(b'{"model": ')


def test_clients_leave_while_others_stay(server, endless):
    kept = endless | {"max_tokens": 200, "temperature": 0}
    alone = post(server, PATH, kept).json["choices"][0]["text"]
    with streaming(server, PATH, kept) as response:
        for _ in range(TIMES):
            with streaming(server, PATH, endless) as leaving:
                leaving.readline()
        events = [line for line in response.read().splitlines() if line.startswith(b"data: {")]
    texts = [json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events]
    assert "".join(texts) == alone
