"""GGUF files through the SDK: the answers of the directory they are made of, or one sentence."""

import struct
import subprocess

import openai
import pytest

from stator_process import BINARY, DEADLINE_S, REPOSITORY, Server, check_sentence, run

# A text of metadata: its length, and the text.
GPT2 = struct.pack("<Q", 4) + b"gpt2"

QUESTIONS = ["What is a KV block?", "Hello!", "What does the router do, and what does it know?"]


def make(directory, file, kind):
    """A GGUF file of a model directory, with its matrices in a type."""
    maker = REPOSITORY / BINARY.parent / "examples/make_gguf"
    assert maker.is_file(), f"{maker} does not exist; cargo build --workspace --all-targets"
    subprocess.run([maker, directory, file, kind, "stator-demo"], check=True, timeout=DEADLINE_S)
    return file


@pytest.fixture(scope="module")
def demo_file(demo_directory, tmp_path_factory):
    """The bundled model as a GGUF file, in bf16 as it is."""
    return make(demo_directory, tmp_path_factory.mktemp("gguf") / "Demo-BF16.gguf", "BF16")


def answers(server):
    """Greedy answers, whole and streamed, and the tokens of a completion."""
    with openai.OpenAI(
        base_url=server.base_url, api_key="any", timeout=DEADLINE_S, max_retries=0
    ) as client:
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            settings = {"model": server.model, "messages": messages, "temperature": 0, "seed": 1}
            whole = client.chat.completions.create(**settings)
            chunks = list(client.chat.completions.create(**settings, stream=True))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == whole.choices[0].message.content
            assert whole.choices[0].finish_reason == "stop"
            yield text, whole.usage.prompt_tokens, whole.usage.completion_tokens
        completion = client.completions.create(
            model=server.model, prompt="A worker 123, it's", max_tokens=20, temperature=0, logprobs=3
        )
        yield completion.choices[0].text, completion.choices[0].logprobs.token_logprobs


def test_a_file_answers_as_its_directory_does(demo_file, demo_directory):
    with Server(demo_directory) as server:
        expected = list(answers(server))
    with Server(demo_file) as server:
        assert server.model == "Demo-BF16"
        assert list(answers(server)) == expected


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q6_K"])
def test_quantised_files_answer(demo_directory, tmp_path, kind):
    with Server(make(demo_directory, tmp_path / f"demo-{kind}.gguf", kind)) as server:
        text = next(answers(server))[0]
    assert text.startswith("A KV block is a fixed-size piece of the KV cache"), text


def test_a_file_without_a_tokenizer(fixture_directory, tmp_path):
    file = make(fixture_directory, tmp_path / "tiny.gguf", "F32")
    check_refused(file, "metadata tokenizer.ggml.tokens is missing")


def check_refused(model, *parts):
    """Serving `model` must fail with a single sentence that has all `parts`."""
    ended = run("serve", "--listen", "127.0.0.1:0", model)
    check_sentence(ended, 64, str(model), "; ", *parts)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda file: b"", "does not begin with"),
        (lambda file: b"GGML" + file[4:], "does not begin with"),
        (lambda file: file[:4] + struct.pack("<I", 1) + file[8:], "GGUF version 1"),
        (lambda file: file[:4] + struct.pack(">I", 3) + file[8:], "big-endian numbers"),
        (lambda file: file[:5000], "truncated"),
        (lambda file: file[:-100_000], "truncated"),
        (lambda file: file[:8] + b"\xff" * 8 + file[16:], "tensors"),
        (lambda file: file.replace(b"qwen3", b"mamba"), "architecture mamba"),
        (lambda file: file.replace(b"stator-demo", b"martian-bpe"), "pre-tokenizer martian-bpe"),
        (lambda file: file.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xy.weight"), "ffn_xy.weight"),
        (lambda file: file.replace(GPT2, GPT2[:-4] + b"bert"), "a tokenizer of model bert"),
    ],
)
def test_wrong_files(demo_file, tmp_path, change, part):
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(change(demo_file.read_bytes()))
    check_refused(wrong, part)


def test_unsupported_tensor_type(demo_file, tmp_path):
    # Type 30 becomes 24, of one byte: the tensor is shorter then, and refused by its name.
    name = b"blk.0.attn_q.weight"
    file = demo_file.read_bytes()
    at = file.index(name) + len(name) + 4 + 2 * 8
    assert struct.unpack_from("<I", file, at) == (30,)
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(file[:at] + struct.pack("<I", 24) + file[at + 4 :])
    check_refused(wrong, "type I8 (tensor blk.0.attn_q.weight)", "supported: F32, BF16 and F16, and")


def test_a_file_of_another_kind(demo_directory):
    model = demo_directory / "config.json"
    check_refused(model, "is a file of another kind", "a .gguf file")
