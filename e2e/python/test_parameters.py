"""What single parameters do to the text, as far as `test_completions.py` does not say it."""

import pytest

from plain_http import post

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.fixture
def choose(server):
    """The first choice of a greedy completion, whatever its parameters."""

    def ask(**fields):
        defaults = {"model": server.model, "prompt": "The prefill worker", "max_tokens": 60}
        answer = post(server, COMPLETIONS, defaults | {"temperature": 0} | fields)
        assert answer.status == 200, answer.body
        return answer.json["choices"][0] | {"tokens": answer.json["usage"]["completion_tokens"]}

    return ask


def repeated(text):
    """The part of words that were there before."""
    words = text.split()
    return 1 - len(set(words)) / len(words)


@pytest.mark.parametrize(
    "penalty",
    [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 1.5}],
)
def test_penalties_make_words_rarer(choose, penalty):
    asked = {"max_tokens": 300, "ignore_eos": True}
    assert repeated(choose(**asked, **penalty)["text"]) < repeated(choose(**asked)["text"])


def test_min_p_of_one_is_greedy(choose):
    greedy = choose()["text"]
    assert choose(temperature=2, seed=1, min_p=1)["text"] == greedy
    assert choose(temperature=2, seed=1)["text"] != greedy


def test_min_tokens_keep_the_model_from_ending(server):
    def answer(**fields):
        messages = [{"role": "user", "content": "What is prefill?"}]
        body = {"model": server.model, "messages": messages, "temperature": 0} | fields
        answered = post(server, CHAT, body).json
        text = answered["choices"][0]["message"]["content"]
        return text, answered["usage"]["completion_tokens"]

    (short, tokens), (long, more) = answer(), answer(min_tokens=300, max_tokens=310)
    assert tokens < 300 <= more
    assert long.startswith(short)


def test_ignore_eos_goes_on_to_the_limit(choose):
    asked = choose(max_tokens=400, ignore_eos=True)
    assert (asked["finish_reason"], asked["tokens"]) == ("length", 400)


def test_temperature_spreads_the_text(choose):
    texts = {choose(temperature=2, seed=seed)["text"] for seed in range(4)}
    assert len(texts) == 4
    assert len({choose(temperature=0, seed=seed)["text"] for seed in range(4)}) == 1


def test_the_newer_limit_of_tokens_wins(server):
    body = {"model": server.model, "messages": [{"role": "user", "content": "What is prefill?"}]}
    asked = body | {"max_tokens": 9, "max_completion_tokens": 4}
    usage = post(server, CHAT, asked).json["usage"]
    assert usage["completion_tokens"] == 4
    assert post(server, CHAT, body | {"max_tokens": 9}).json["usage"]["completion_tokens"] == 9


def test_null_means_absent(server):
    from test_api_document import request_properties

    for path, name in [(CHAT, "ChatRequest"), (COMPLETIONS, "CompletionRequest")]:
        required = {"model": server.model, "max_tokens": 3, "temperature": 0, "seed": 1}
        required |= (
            {"prompt": "Hello"}
            if path == COMPLETIONS
            else {"messages": [{"role": "user", "content": "Hello"}]}
        )
        nulls = {field: None for field in request_properties(name) if field not in required}
        with_nulls = post(server, path, nulls | required)
        assert with_nulls.status == 200, with_nulls.body
        assert with_nulls.json["choices"] == post(server, path, required).json["choices"]
