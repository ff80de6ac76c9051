"""`stator loadtest` against `stator serve`."""

import json
import signal
import socket

import pytest

from stator_process import Lines, check_sentence, run, start


def report(server, *arguments):
    """The JSON report of a run that must succeed."""
    ended = run("loadtest", server.base_url, *arguments, "--json", "-")
    assert ended.code == 0, ended
    assert any("Latency (ms)" in line for line in ended.stderr), ended
    return json.loads("\n".join(ended.stdout))


def test_open_loop(server):
    arguments = ["--rate", 20, "--arrivals", "constant", "--duration", "1s", "--seed", 71]
    arguments += ["--input-tokens", 100, "--output-tokens", 5, "--pid", server.process.pid]
    got = report(server, *arguments, "--slo-ttft-ms", 60_000)
    assert got["requests"] | {"ok": 20} == got["requests"]
    assert sum(got["requests"].values()) == 20
    assert got["tokens"]["output_tokens"] == 100
    assert got["tokens"]["mean_prompt_tokens"] == pytest.approx(100, abs=3)
    assert got["configuration"]["model"] == server.model
    assert got["latency_ms"]["end_to_end"]["count"] == 20
    assert got["goodput"]["share"] == 1
    names = {process["name"] for process in got["processes"]}
    assert names == {"stator"} and len(got["processes"]) == 2


def test_turns_find_their_history_cached(server):
    arguments = ["--concurrency", 2, "--duration", "2s", "--turns", 3, "--seed", 72]
    arguments += ["--input-tokens", 200, "--prefix-tokens", 150, "--output-tokens", 8]
    got = report(server, *arguments)
    assert got["requests"]["ok"] == sum(got["requests"].values()) > 3
    assert got["tokens"]["mean_prompt_tokens"] > 200
    assert got["tokens"]["cached_prompt_tokens"] > got["tokens"]["prompt_tokens"] / 4


def test_ctrl_c_ends_with_a_report(server):
    process = start("loadtest", server.base_url, "--concurrency", 1, "--duration", "1h")
    stdout, stderr = Lines(process.stdout), Lines(process.stderr)
    try:
        stderr.wait_for("of 3600 s")
        process.send_signal(signal.SIGINT)
        # 69 if it came before the first answer.
        assert process.wait(timeout=60) in (0, 69)
    finally:
        process.kill()
    assert any("interrupted" in line for line in stdout.to_end()), stdout.seen


def test_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    ended = run("loadtest", f"http://127.0.0.1:{port}", "--rate", 1)
    check_sentence(ended, 69, str(port), "not reachable", "is the server running?")


def test_model_that_is_not_there(server):
    ended = run("loadtest", server.base_url, "--rate", 1, "--model", "none-such")
    check_sentence(ended, 69, "none-such", "404")


def test_prompts_without_room(server):
    ended = run("loadtest", server.base_url, "--rate", 1, "--input-tokens", 2)
    check_sentence(ended, 64, "--input-tokens 2", "no room")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "--rate"),
        (["--rate", 1, "--concurrency", 1], "--concurrency"),
        (["--rate", 0], "--rate"),
        (["--rate", 1, "--duration", "soon"], "--duration"),
    ],
)
def test_wrong_arguments(arguments, part):
    ended = run("loadtest", "http://127.0.0.1:9", *arguments)
    assert (ended.code, ended.stdout) == (64, [])
    assert any(part in line for line in ended.stderr), ended
