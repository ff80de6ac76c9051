"""HTTP as it is on the wire, for what an SDK would hide."""

import contextlib
import http.client
import json
from dataclasses import dataclass

from stator_process import DEADLINE_S

JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    """A response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@contextlib.contextmanager
def connected(server):
    """A connection to the server."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE_S)
    try:
        yield connection
    finally:
        connection.close()


def request(server, method, path, body=None, headers=()):
    """Sends `body`, bytes or something to be written as JSON, and reads the whole response."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    with connected(server) as connection:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def post(server, path, body, headers=()):
    """Posts JSON and reads the whole response."""
    return request(server, "POST", path, body, JSON | dict(headers))


@contextlib.contextmanager
def streaming(server, path, body):
    """A response that is read while it comes."""
    with connected(server) as connection:
        connection.request("POST", path, json.dumps(body | {"stream": True}), JSON)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        yield response


def chunks(body):
    """The JSON of all events of an event stream before `[DONE]`, which must come last."""
    assert body.endswith(b"\n\n"), body[-200:]
    events = [event for event in body.decode().split("\n\n") if event]
    data = [event for event in events if not event.startswith(":")]
    assert all(event.startswith("data: ") for event in data)
    assert data[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in data[:-1]]
