"""Connections: HTTP/1.1 and HTTP/2, and clients that are slow, rude or gone."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time

import h2.config
import h2.connection
import h2.events
import httpx
import openai
import pytest

from plain_http import JSON, chunks, connected, post, request
from stator_process import DEADLINE_S, Server

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

# What slow clients are given in these tests. Those that are quick enough take a part of it.
PATIENCE_S = 2


@pytest.fixture(scope="module")
def mock():
    """A server that computes nothing, and has little patience."""
    with Server("--engine", "mock", "--client-timeout", PATIENCE_S) as server:
        yield server
        server.interrupt()
        assert server.exit_code() == 0


@pytest.fixture(autouse=True)
def nothing_is_left(mock):
    """Whatever a test does, the server answers afterwards, and has no request under way."""
    yield
    assert post(mock, COMPLETIONS, hello(mock)).status == 200
    wait_until(lambda: in_flight(mock) == 0, "all requests have ended")


def in_flight(server):
    metrics = request(server, "GET", "/metrics").body.decode()
    return int(re.search(r"^stator_requests_in_flight (\d+)", metrics, re.MULTILINE)[1])


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def hello(server, **fields):
    return {"model": server.model, "prompt": "Hello", "max_tokens": 2, **fields}


def endless(server):
    """Far more than a client can have in its buffers."""
    tokens = {"max_tokens": 8000, "ignore_eos": True, "logprobs": 5}
    return hello(server, stream=True, **tokens)


@contextlib.contextmanager
def raw(server, *sent):
    """A TCP connection over which something was sent."""
    with socket.create_connection((server.host, server.port), timeout=DEADLINE_S) as connection:
        for part in sent:
            connection.sendall(part)
        yield connection


def to_end(connection):
    """All that comes until the server ends the connection."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def head_of(server, path, body, *headers):
    length = f"content-length: {len(body)}"
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", length, *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def answer_of(text):
    """Status, headers and JSON of a response that came as bytes."""
    head, _, body = text.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(first.split()[1]), headers, json.loads(body)


# HTTP/2


@pytest.fixture
def client2(mock):
    """A client that speaks HTTP/2 from the first byte."""
    address = f"http://{mock.host}:{mock.port}"
    with httpx.Client(http1=False, http2=True, base_url=address, timeout=DEADLINE_S) as client:
        yield client


def test_http2_answers_as_http1_does(mock, client2):
    body = hello(mock, max_tokens=20, seed=7)
    for path, body in [
        (COMPLETIONS, body),
        (COMPLETIONS, {}),
        ("/v1/nothing", {}),
        ("/v1/models", {}),
        ("/tokenize", {"prompt": "Hello"}),
    ]:
        plain, over_http2 = post(mock, path, body), client2.post(path, json=body)
        assert over_http2.http_version == "HTTP/2"
        assert over_http2.status_code == plain.status
        names = {"date", "x-request-id", "openai-processing-ms"}
        told = {name: value for name, value in over_http2.headers.items() if name not in names}
        assert told == {k: v for k, v in plain.headers.items() if k not in names}
        without = {"id", "created"}
        strip = lambda answer: {key: answer[key] for key in answer.keys() - without}
        assert strip(over_http2.json()) == strip(plain.json)


def test_http2_streams_side_by_side(mock):
    async def text(client, seed):
        body = hello(mock, stream=True, max_tokens=50, seed=seed)
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            assert response.http_version == "HTTP/2"
            assert response.headers["content-type"] == "text/event-stream"
            events = chunks(await response.aread())
        return "".join(event["choices"][0]["text"] for event in events)

    async def texts():
        limits = httpx.Limits(max_connections=1)
        address = f"http://{mock.host}:{mock.port}"
        async with httpx.AsyncClient(
            http1=False, http2=True, base_url=address, timeout=DEADLINE_S, limits=limits
        ) as client:
            return await asyncio.gather(*(text(client, seed) for seed in range(20)))

    for seed, streamed in enumerate(asyncio.run(texts())):
        alone = post(mock, COMPLETIONS, hello(mock, max_tokens=50, seed=seed)).json
        assert streamed == alone["choices"][0]["text"]


def test_the_sdk_over_http2(mock):
    transport = openai.DefaultHttpxClient(http1=False, http2=True)
    with openai.OpenAI(base_url=mock.base_url, api_key="any", http_client=transport) as client:
        messages = [{"role": "user", "content": "Hello"}]
        asked = {"model": mock.model, "messages": messages, "seed": 5, "max_tokens": 30}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        deltas = client.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == whole
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**asked | {"messages": []})


def test_a_head_request_over_http2(client2):
    answer = client2.head("/v1/models")
    assert (answer.status_code, answer.content) == (200, b"")


def test_an_upgrade_to_http2_is_answered_in_http1(mock):
    headers = {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": ""}
    assert request(mock, "GET", "/v1/models", headers=headers).status == 200


class Http2:
    """An HTTP/2 client that gives its connection room for more, but never a stream of it."""

    def __init__(self, server):
        self.socket = socket.create_connection((server.host, server.port), timeout=DEADLINE_S)
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.connection.data_to_send())

    def post(self, path, body, headers=(), end_stream=True):
        stream = self.connection.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", path)]
        fields = [("content-type", "application/json"), *headers]
        self.connection.send_headers(stream, pseudo + fields)
        self.connection.send_data(stream, json.dumps(body).encode(), end_stream)
        self.flush()
        return stream

    def events(self):
        """What comes, until the server ends the connection."""
        while data := self.socket.recv(1 << 16):
            events = self.connection.receive_data(data)
            for event in events:
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.connection.increment_flow_control_window(event.flow_controlled_length)
            self.flush()
            yield from events

    def wait_for(self, kind, stream):
        """The next event of a kind on a stream; everything else is left where it is."""
        same = (event for event in self.events() if isinstance(event, kind))
        return next(event for event in same if event.stream_id == stream)


def test_an_http2_stream_that_is_not_read_is_reset_and_others_go_on(mock):
    client = Http2(mock)
    with contextlib.closing(client.socket):
        # The stream's window is used up soon.
        silent = client.post(COMPLETIONS, endless(mock))
        assert client.wait_for(h2.events.StreamReset, silent)
        other = client.post(COMPLETIONS, hello(mock))
        assert client.wait_for(h2.events.StreamEnded, other)


def test_an_http2_stream_that_the_client_resets_ends(mock):
    client = Http2(mock)
    with contextlib.closing(client.socket):
        stream = client.post(COMPLETIONS, endless(mock))
        client.wait_for(h2.events.DataReceived, stream)
        client.connection.reset_stream(stream)
        client.flush()
        wait_until(lambda: in_flight(mock) == 0, "the request has ended")


def test_rapid_resets_end_the_connection(mock):
    client = Http2(mock)
    with contextlib.closing(client.socket):
        ended = None
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                stream = client.connection.get_next_available_stream_id()
                client.connection.send_headers(
                    stream,
                    [(":method", "POST"), (":scheme", "http"), (":path", CHAT), (":authority", "x")],
                )
                client.connection.reset_stream(stream)
            client.flush()
            ended = [e for e in client.events() if isinstance(e, h2.events.ConnectionTerminated)]
        assert ended is None or ended, "the server did not mind"


def test_too_many_http2_headers(mock):
    client = Http2(mock)
    with contextlib.closing(client.socket):
        many = [(f"x-{number}", "1") for number in range(100)]
        stream = client.post(COMPLETIONS, hello(mock), many)
        response = client.wait_for(h2.events.ResponseReceived, stream)
        assert dict(response.headers)[":status"] == "431"


# Slow and rude clients


def test_a_client_that_does_not_read_is_cut_off(mock):
    body = json.dumps(endless(mock)).encode()
    # More than the system holds for a connection.
    times = 6
    with raw(mock, (head_of(mock, COMPLETIONS, body) + body) * times) as connection:
        wait_until(lambda: in_flight(mock) == 1, "it is under way")
        # Others are not held up meanwhile.
        assert post(mock, COMPLETIONS, hello(mock)).status == 200
        wait_until(lambda: all(in_flight(mock) == 0 for _ in range(50)), "it was cut off")
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            taken = to_end(connection)
        assert taken.count(b"data: [DONE]") < times


def test_a_client_that_reads_slowly_has_all_of_it(mock):
    asked = hello(mock, stream=True, max_tokens=2000, ignore_eos=True, seed=1)
    body = json.dumps(asked).encode()
    with raw(mock, head_of(mock, COMPLETIONS, body, "connection: close"), body) as connection:
        taken = b""
        while part := connection.recv(512):
            taken += part
            time.sleep(0.001)
    texts = re.findall(rb'"text":"([^"]*)"', taken)
    whole = post(mock, COMPLETIONS, asked | {"stream": False}).json
    assert b"".join(texts).decode() == whole["choices"][0]["text"]
    assert b"data: [DONE]" in taken


@pytest.mark.parametrize("sent", [b"", b"{", b'{"model": '])
def test_a_body_that_stops_is_given_up(mock, sent):
    with raw(mock, head_of(mock, CHAT, b" " * 1000), sent) as connection:
        status, _, answer = answer_of(to_end(connection))
    assert (status, answer["error"]["code"]) == (408, "body_timeout")


def test_a_body_that_trickles_is_given_up(mock):
    with raw(mock, head_of(mock, CHAT, b" " * 100_000)) as connection:
        began = time.monotonic()
        connection.settimeout(PATIENCE_S / 10)
        answer = b""
        while not answer:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1 << 16)
        assert time.monotonic() - began < DEADLINE_S / 2
    assert answer_of(answer)[0] == 408


def test_a_slow_body_that_comes_is_read(mock):
    body = json.dumps(hello(mock)).encode()
    with raw(mock, head_of(mock, COMPLETIONS, body, "connection: close")) as connection:
        for at in range(len(body)):
            connection.sendall(body[at : at + 1])
        assert answer_of(to_end(connection))[0] == 200


def test_a_client_that_ends_its_half_is_gone(mock):
    body = json.dumps(endless(mock)).encode()
    with raw(mock, head_of(mock, COMPLETIONS, body), body) as connection:
        wait_until(lambda: in_flight(mock) == 1, "it is under way")
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert b"data: [DONE]" not in to_end(connection)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_although_the_client_keeps_sending(mock, declared):
    """The answer must not be lost with the bytes that nobody reads."""
    whole, part = 70 << 20, b" " * (1 << 20)
    with connected(mock) as connection:
        connection.putrequest("POST", CHAT)
        connection.putheader("content-type", "application/json")
        if declared:
            connection.putheader("content-length", str(whole))
        else:
            connection.putheader("transfer-encoding", "chunked")
        connection.endheaders()
        for _ in range(whole // len(part)):
            connection.send(part if declared else b"100000\r\n" + part + b"\r\n")
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "request_too_large"


# (what is sent, status, code)
NO_HTTP = [
    (b"nonsense\r\n\r\n", 400, "malformed_request"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400, "malformed_request"),
    (b"GET / HTTP/1.1\r\nno colon here\r\n\r\n", 400, "malformed_request"),
    (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 400, "malformed_request"),
    (b"GET /v1/a b HTTP/1.1\r\n\r\n", 400, "malformed_request"),
    (b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "malformed_request"),
    (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 97 + b"\r\n", 431, "headers_too_large"),
    (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431, "headers_too_large"),
    (b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
    (b"GET / HTTP/1.1\r\nx: " + b"y" * 5_000_000 + b"\r\n\r\n", 431, "headers_too_large"),
    (b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
    (b"GET http://elsewhere/nothing HTTP/1.1\r\n\r\n", 404, "unknown_url"),
    (b"OPTIONS * HTTP/1.1\r\n\r\n", 404, "unknown_url"),
]


@pytest.mark.parametrize(("sent", "status", "code"), NO_HTTP)
def test_odd_heads_are_answered_in_the_envelope(mock, sent, status, code):
    sent = sent.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    with raw(mock) as connection:
        sending = threading.Thread(target=send_what_can_be, args=(connection, sent))
        sending.start()
        got, headers, answer = answer_of(to_end(connection))
        sending.join(DEADLINE_S)
    assert (got, answer["error"]["code"]) == (status, code)
    assert headers["x-request-id"].startswith("req_")
    assert headers["x-should-retry"] == "false"
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def send_what_can_be(connection, sent):
    with contextlib.suppress(ConnectionError):
        connection.sendall(sent)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"b":['])
def test_deep_nesting_is_refused(mock, opening):
    for depth in (200, 1_000_000):
        answer = post(mock, CHAT, opening * depth)
        assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_json")
        assert "nested too deep" in answer.json["error"]["message"]


def test_nesting_within_the_limit_is_ignored(mock):
    deep = {}
    for _ in range(100):
        deep = {"a": deep}
    assert post(mock, COMPLETIONS, hello(mock, metadata=deep)).status == 200


def test_many_requests_on_one_connection(mock):
    with connected(mock) as connection:
        for number in range(300):
            path, body = [(COMPLETIONS, hello(mock)), ("/v1/nothing", {}), (CHAT, {})][number % 3]
            connection.request("POST", path, json.dumps(body), JSON)
            response = connection.getresponse()
            assert response.status == [200, 404, 400][number % 3]
            response.read()


def test_pipelined_requests_are_answered_in_order(mock):
    ask = "GET /v1/models/{0} HTTP/1.1\r\nx-request-id: {0}\r\n\r\n"
    sent = "".join(ask.format(number) for number in range(20)).encode()
    with raw(mock, sent, b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n") as connection:
        answers = to_end(connection).decode()
    ids = re.findall(r"x-request-id: (\d+)\r\n", answers)
    assert ids == [str(number) for number in range(20)]
