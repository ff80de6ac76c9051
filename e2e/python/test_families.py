"""Every family through the SDK, from its Hugging Face directory and from a GGUF file of it: the tokens that
Hugging Face transformers chose (engine/tests/fixtures/expected.json)."""

import json
import shutil

import openai
import pytest

from model_files import edit_json
from stator_process import DEADLINE_S, REPOSITORY, Server
from test_gguf_files import make

FIXTURES = REPOSITORY / "engine/tests/fixtures"
FAMILIES = ["llama2", "llama3-rope-scaled", "mistral-window", "qwen2-bias", "qwen3-tied"]
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def with_tokenizer(fixture, demo, target):
    """A copy of a fixture, whose vocabulary is the first tokens of the bundled model's."""
    shutil.copytree(fixture, target)
    size = json.loads((fixture / "config.json").read_text())["vocab_size"]
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < size}
    model["merges"] = [pair for pair in model["merges"] if joined(pair) in model["vocab"]]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copyfile(demo / "tokenizer_config.json", target / "tokenizer_config.json")
    return target


def joined(pair):
    return pair.replace(" ", "") if isinstance(pair, str) else "".join(pair)


def text_of(token):
    """What a token of a byte-level vocabulary spells, alone: bytes that are no text have characters of their own
    there, in order from 256 on (as GPT-2 has it)."""
    shown = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    spelled = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return bytes(spelled[character] for character in token).decode(errors="replace")


def answers(server, cases):
    """Greedy tokens of each prompt, as texts, with their logprobs."""
    with openai.OpenAI(
        base_url=server.base_url, api_key="any", timeout=DEADLINE_S, max_retries=0
    ) as client:
        for case in cases:
            completion = client.completions.create(
                model=server.model, prompt=case["prompt"], temperature=0, logprobs=0,
                max_tokens=len(case["greedy"]), extra_body={"ignore_eos": True},
            )
            logprobs = completion.choices[0].logprobs
            yield logprobs.tokens, logprobs.token_logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_transformers_does(family, demo_directory, tmp_path):
    fixture = FIXTURES / family
    directory = with_tokenizer(fixture, demo_directory, tmp_path / family)
    config = json.loads((fixture / "config.json").read_text())
    cases = json.loads((fixture / "expected.json").read_text())
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    texts = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    found = []
    file = make(directory, tmp_path / f"{family}.gguf", TYPES[config["torch_dtype"]])
    for model in (directory, file):
        with Server(model) as server:
            found.append(list(answers(server, cases)))
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    # Two roundings to bf16 part sooner or later.
    same = 4 if config["torch_dtype"] == "bfloat16" else None
    for (tokens, _), case in zip(found[0], cases):
        # Special tokens have no text, and are not shown.
        shown = [text_of(texts[number]) for number in case["greedy"] if number not in special]
        assert tokens[:same] == shown[:same]
    for (tokens, logprobs), (of_file, logprobs_of_file) in zip(*found):
        assert of_file[:same] == tokens[:same], "the file answers as the directory does"
        # Llama's heads lie in another order in a file, and are added up in that.
        assert logprobs_of_file[:same] == pytest.approx(logprobs[:same], abs=1e-3)
    assert len({str(tokens) for tokens, _ in found[0]}) > 1, "prompts differ"
