"""Clients that go away before their answer is complete."""

import json

import pytest

from cluster import wait_until
from plain_http import JSON, connected, post, request, streaming

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


def under_way(server):
    """How many sequences the workers have, and requests the gateway."""
    text = request(server, "GET", "/metrics").body.decode()
    wanted = (
        'stator_sequences{state="running"}',
        'stator_sequences{state="waiting"}',
        "stator_requests_in_flight",
    )
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    return sum(float(values[name]) for name in wanted)


@pytest.mark.parametrize("several", [{"n": 6}, {"prompt": ["A sea.", "A cat.", "A dog."], "n": 2}])
def test_all_choices_end_with_their_client(server, endless, several):
    wait_until(lambda: under_way(server) == 0, "nothing is under way")
    with streaming(server, PATH, endless | {"max_tokens": 3000} | several) as response:
        assert response.readline().startswith(b"data: ")
        wait_until(lambda: under_way(server) == 7, "six choices of one request are under way")
    wait_until(lambda: under_way(server) == 0, "the choices have ended")
