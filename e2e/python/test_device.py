"""What computes: `--device`. The binary under test has candle, and not its CUDA kernels."""

import pytest

from plain_http import post
from stator_process import Server, run

QUESTION = [{"role": "user", "content": "What is a KV block?"}]


def answer(server):
    fields = {"model": server.model, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    answered = post(server, "/v1/chat/completions", fields)
    assert answered.status == 200, answered.body
    return answered.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("numerics", ["fixed", "fast"])
def test_candle_answers_as_our_kernels_do(numerics):
    with Server() as ours:
        expected = answer(ours)
    with Server("--device", "candle-cpu", "--numerics", numerics) as candle:
        assert answer(candle) == expected


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--device", "candle-cuda"), ["candle's CUDA kernels", "--features cuda", "--device cuda"]),
        (("--device", "candle-cuda:1"), ["--features cuda"]),
        (("--device", "gpu"), ["--device", "cuda:N"]),
        (("--device", "candle-cpu", "--engine", "mock"), ["leave --device out"]),
        (("--device", "candle-cpu", "--quantization", "int8"), ["--quantization"]),
        (("--quantization", "fp8"), ["--device cuda"]),
        (("--share-weights",), ["--device cuda"]),
        (("--device", "cuda", "--block-size", "6"), ["--block-size 16"]),
        (("--numerics", "fast"), ["leave --numerics out"]),
    ],
)
def test_what_cannot_be_says_so(arguments, parts):
    ended = run("serve", *arguments)
    assert ended.code == 64, ended
    assert [part for part in parts if part not in "\n".join(ended.stderr)] == [], ended
