"""Whose answer comes first where there is no room for all."""

import threading

import pytest

from cluster import wait_until
from plain_http import post, request, streaming
from stator_process import Server

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def narrow():
    """A server that answers one request after the other, 30 ms per step."""
    with Server("--engine", "mock", "--mock-step-us", 30_000, "--max-num-seqs", 1) as server:
        yield server


def waiting(server):
    """Sequences that wait in its engines."""
    metrics = request(server, "GET", "/metrics").body.decode()
    return sum(
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith('stator_sequences{state="waiting"}')
    )


def answer_order(server, priorities):
    """The numbers of requests of these priorities, sent one after the other while another one is
    answered, in the order of their answers."""
    order, threads = [], []

    def ask(number, priority):
        body = {"model": server.model, "prompt": [5, 6, number], "max_tokens": 2, "priority": priority}
        assert post(server, PATH, body).status == 200
        order.append(number)

    first = {"model": server.model, "prompt": [5, 6, 7], "max_tokens": 200}
    with streaming(server, PATH, first) as response:
        response.readline()
        for number, priority in enumerate(priorities):
            threads.append(threading.Thread(target=ask, args=(number, priority)))
            threads[-1].start()
            wait_until(lambda: waiting(server) == number + 1, "it waits")
    for thread in threads:
        thread.join()
    return order


def test_lower_values_are_answered_first(narrow):
    assert answer_order(narrow, [3, 0, -2, 5, 0]) == [2, 1, 4, 0, 3]


def test_without_priorities_the_first_is_answered_first(narrow):
    assert answer_order(narrow, [0, None, 0]) == [0, 1, 2]
