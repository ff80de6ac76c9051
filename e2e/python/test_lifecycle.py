"""The command from its start to its end: arguments, signals, exit codes."""

import http.client
import json
import re
import signal
import socket

import pytest

from plain_http import chunks, connected, request, streaming
from stator_process import Server, check_sentence, run

PATH = "/v1/completions"


def answer_of(tokens, server):
    """A request whose answer has this many tokens."""
    prompt = {"model": server.model, "prompt": [5, 6, 7]}
    return prompt | {"max_tokens": tokens, "ignore_eos": True}


def endless(server):
    """A request that outlives its test."""
    return answer_of(8000, server)


def check_quiet(server):
    """Nothing but the command's own sentences may stand on standard error."""
    assert [line for line in server.stderr.to_end() if not line.startswith("stator: ")] == []


def test_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        check_sentence(run("serve", "--listen", address), 69, address, "choose another --listen")


def test_port_of_another_server(server):
    address = f"{server.host}:{server.port}"
    check_sentence(run("serve", "--listen", address), 69, address, "choose another --listen")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8000"])
def test_open_address_needs_consent(address):
    ended = run("serve", "--listen", address)
    check_sentence(ended, 64, address, "not a loopback address", "--insecure")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["serve", "--unknown"], "--unknown"),
        (["serve", "--listen", "nowhere"], "--listen"),
        (["serve", "--listen", "127.0.0.1:70000"], "--listen"),
        (["serve", "--block-size", "0"], "--block-size"),
        (["serve", "--max-num-seqs", "many"], "--max-num-seqs"),
        (["serve", "--kv-blocks", "1"], "--kv-blocks"),
        (["serve", "--threads", "0"], "--threads"),
        (["serve", "--grace-period-s", "-1"], "-1"),
        (["serve", "one", "two"], "two"),
        (["server"], "server"),
    ],
)
def test_wrong_arguments(arguments, part):
    ended = run(*arguments)
    assert (ended.code, ended.stdout) == (64, [])
    assert any(part in line for line in ended.stderr), ended
    assert not any("panicked" in line for line in ended.stderr), ended


def test_no_arguments_show_the_usage():
    ended = run()
    assert ended.code == 64
    assert any("Usage: stator" in line for line in ended.stderr), ended


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--help"], "serve"), (["serve", "--help"], "--listen"), (["--version"], "stator ")],
)
def test_questions_about_the_command(arguments, part):
    ended = run(*arguments)
    assert (ended.code, ended.stderr) == (0, [])
    assert any(part in line for line in ended.stdout), ended


def test_welcome_shows_a_request_that_works():
    with Server() as server:
        text = server.stdout.wait_for(r"""-d '(\{"model".*\})'""")[1]
        body = json.loads(text) | {"max_tokens": 1}
        headers = {"content-type": "application/json"}
        assert request(server, "POST", "/v1/chat/completions", body, headers).status == 200


def test_the_welcome_says_what_computes():
    with Server("--threads", "1", "--kv-blocks", "100") as server:
        on, pool = server.stdout.seen[1:3]
        assert re.fullmatch(r"  on    the CPU, 1 thread, numerics \S+", on), on
        assert re.fullmatch(r"  pool  2 x 100 blocks of 16 tokens, [\d.]+ MiB each", pool), pool


def test_model_has_the_name_it_is_given(demo_directory):
    with Server(demo_directory, "--model-name", "some/name") as server:
        models = request(server, "GET", "/v1/models").json["data"]
        assert [model["id"] for model in models] == ["some/name"]
        assert request(server, "GET", "/v1/models/some/name").status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_an_idle_server(number):
    with Server() as server:
        server.process.send_signal(number)
        assert server.exit_code() == 0
        check_quiet(server)


def test_signal_ends_a_server_with_idle_connections():
    with Server("--grace-period-s", 3600) as server, connected(server) as connection:
        connection.request("GET", "/health")
        connection.getresponse().read()
        server.interrupt()
        assert server.exit_code() == 0


def test_port_is_closed_afterwards():
    with Server() as server:
        server.interrupt()
        server.exit_code()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port))


def test_ctrl_c_lets_a_stream_end():
    with Server("--grace-period-s", 3600) as server:
        with streaming(server, PATH, answer_of(1000, server)) as response:
            first = response.readline()
            server.interrupt()
            answer = chunks(first + response.read())
        assert server.exit_code() == 0
        check_quiet(server)
    assert answer[-1]["choices"][0]["finish_reason"] == "length"


def test_ctrl_c_lets_a_whole_answer_end():
    with Server("--grace-period-s", 3600) as server:
        # The stream is sent later, so once its first token is there both are under way.
        with connected(server) as connection:
            body = json.dumps(answer_of(1000, server))
            connection.request("POST", PATH, body, {"content-type": "application/json"})
            with streaming(server, PATH, answer_of(1000, server)) as response:
                response.readline()
                server.interrupt()
                response.read()
            answer = connection.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["usage"]["completion_tokens"] == 1000
        assert server.exit_code() == 0
        check_quiet(server)


def test_second_ctrl_c_ends_at_once():
    with Server("--grace-period-s", 3600) as server:
        with streaming(server, PATH, endless(server)) as response:
            response.readline()
            server.interrupt()
            server.stderr.wait_for("Ctrl-C again ends at once")
            server.interrupt()
            assert server.exit_code() == 130
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                response.read()


def test_no_grace_ends_the_stream_with_an_error():
    with Server("--grace-period-s", 0) as server:
        with streaming(server, PATH, endless(server)) as response:
            response.readline()
            server.interrupt()
            *_, error, done, _ = response.read().split(b"\n\n")
            assert json.loads(error.strip().removeprefix(b"data: "))["error"]["code"] == "shutting_down"
            assert done == b"data: [DONE]"
            assert server.exit_code() == 0
        assert "panicked" not in "".join(server.stderr.to_end())
