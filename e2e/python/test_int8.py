"""Weights in 8 bits: `--quantization int8`."""

from pathlib import Path

import pytest

from plain_http import post
from stator_process import Server, check_sentence, run


def answer(server):
    messages = [{"role": "user", "content": "What is a KV block?"}]
    fields = {"model": server.model, "messages": messages, "temperature": 0}
    answered = post(server, "/v1/chat/completions", fields)
    assert answered.status == 200, answered.body
    return answered.json["choices"][0]["message"]["content"]


def test_servers_share_one_file_and_answer_alike(tmp_path):
    arguments = ("--quantization", "int8", "--cache-dir", str(tmp_path))
    with Server(*arguments) as first:
        answered = answer(first)
        assert answered.startswith("A KV block is a fixed-size piece of the KV cache"), answered
        (made,) = tmp_path.iterdir()
        written = made.stat().st_mtime_ns
        with Server(*arguments) as second:
            assert answer(second) == answered
        assert made.stat().st_mtime_ns == written
        assert made.name in Path(f"/proc/{first.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("--engine", "mock"), 64, ["--quantization"]),
        (("--cache-dir", "/nonexistent"), 64, ["/nonexistent", "--cache-dir"]),
    ],
)
def test_what_cannot_be_says_so(arguments, code, parts):
    check_sentence(run("serve", "--quantization", "int8", *arguments), code, *parts)
