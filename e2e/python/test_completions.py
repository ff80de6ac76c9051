"""Text completions: prompts, limits, sampling, stops and logprobs."""

import pytest

PROMPT = "The prefill worker"


@pytest.fixture
def complete(client, server):
    """Asks for a greedy completion. What the SDK does not know goes as it is."""

    def ask(prompt=PROMPT, temperature=0, max_tokens=24, extra=None, **more):
        return client.completions.create(
            model=server.model,
            prompt=prompt,
            temperature=temperature,
            max_tokens=max_tokens,
            extra_body=extra,
            **more,
        )

    return ask


@pytest.fixture
def text(complete):
    """The text of a completion."""

    def ask(*arguments, **more):
        answer = complete(*arguments, **more)
        if not more.get("stream"):
            return answer.choices[0].text
        return "".join(chunk.choices[0].text for chunk in answer)

    return ask


def test_continues_a_text(complete, server):
    answer = complete()
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == server.model
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streams_the_same_text(text):
    assert text(stream=True) == text()


def test_stream_with_usage(complete):
    *rest, last = list(complete(stream=True, stream_options={"include_usage": True}))
    assert last.choices == []
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in rest)
    assert [chunk.choices[0].finish_reason for chunk in rest][-1] in ("stop", "length")
    assert last.usage == complete().usage


def test_token_prompt_is_deterministic(complete):
    first, second = complete([5, 6, 7]), complete([5, 6, 7])
    assert first.choices[0].text == second.choices[0].text
    assert first.usage.prompt_tokens == second.usage.prompt_tokens == 3


@pytest.mark.parametrize("token", [400, 1000, 2000])
def test_token_prompt_equals_its_text(complete, text, token):
    prompt = text(max_tokens=1, logit_bias={str(token): 100})
    by_text, by_token = complete(prompt), complete([token])
    assert by_text.usage.prompt_tokens == by_token.usage.prompt_tokens == 1
    assert by_text.choices[0].text == by_token.choices[0].text


def test_one_prompt_in_a_list_is_that_prompt(text):
    assert text([PROMPT]) == text(PROMPT)
    assert text([[5, 6, 7]]) == text([5, 6, 7])


@pytest.mark.parametrize("tokens", [1, 2, 17, 100])
def test_max_tokens_are_exact(complete, tokens):
    answer = complete(max_tokens=tokens, extra={"ignore_eos": True})
    assert answer.usage.completion_tokens == tokens
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_at_all(text, stream):
    assert text(max_tokens=0, stream=stream) == ""


def test_no_tokens_are_counted_as_none(complete):
    answer = complete(max_tokens=0)
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens > 0
    assert answer.choices[0].finish_reason == "length"


def test_default_limit_is_sixteen(client, server):
    answer = client.completions.create(
        model=server.model, prompt=PROMPT, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 16


def test_same_seed_gives_the_same_text(text):
    assert len({text(temperature=1, seed=7) for _ in range(3)}) == 1


def test_seed_holds_beside_streams(text):
    assert text(temperature=1, seed=7, stream=True) == text(temperature=1, seed=7)


def test_different_seeds_give_different_texts(text):
    assert len({text(temperature=1, seed=seed) for seed in range(8)}) >= 2


def test_no_seed_gives_different_texts(text):
    assert len({text(temperature=1) for _ in range(8)}) >= 2


def test_top_k_of_one_is_greedy(text):
    assert text(temperature=1.5, extra={"top_k": 1}) == text()


def test_tiny_top_p_is_greedy(text):
    assert text(temperature=1.5, top_p=1e-6) == text()


# A text that goes on whatever the model says, and slices of it that are to end it.
LONG = {"max_tokens": 60, "extra": {"ignore_eos": True}}
STOPS = [(20, 28), (33, 34), (10, 60), (0, 3)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("start", "end"), STOPS)
def test_stop_string_ends_the_text_before_it(text, start, end, stream):
    full = text(**LONG)
    stop = full[start:end]
    assert stop
    assert text(**LONG, stop=stop, stream=stream) == full[: full.index(stop)]


def test_stop_string_is_the_finish_reason(complete, text):
    answer = complete(**LONG, stop=text(**LONG)[20:28])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 60


@pytest.mark.parametrize("stream", [False, True])
def test_earliest_of_several_stop_strings_wins(text, stream):
    full = text(**LONG)
    stops = ["never to be found", full[30:36], full[15:22], full[45:50]]
    expected = full[: min(full.index(stop) for stop in stops[1:])]
    assert text(**LONG, stop=stops, stream=stream) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_beginning_of_a_stop_string_is_not_lost(text, stream):
    full = text(**LONG)
    # Held back to the very end, since the text ends within what could become the stop string.
    stop = full[-5:] + "never to be found"
    assert text(**LONG, stop=stop, stream=stream) == full


def test_stop_token_ends_the_text(complete):
    answer = complete(logit_bias={"1000": 100}, extra={"stop_token_ids": [1000]})
    assert answer.choices[0].text == ""
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 1


def test_other_stop_tokens_do_not(text):
    unrelated = {"stop_token_ids": [1001]}
    assert text(max_tokens=3, logit_bias={"1000": 100}, extra=unrelated) == text(
        max_tokens=3, logit_bias={"1000": 100}
    )


def test_logit_bias_forces_a_token(text):
    once = text(max_tokens=1, logit_bias={"1000": 100})
    assert once
    assert text(max_tokens=3, logit_bias={"1000": 100}) == once * 3


def test_logit_bias_forbids_a_token(text):
    both = {"1000": 100, "1001": 99}
    second = text(max_tokens=1, logit_bias={"1001": 100})
    assert text(max_tokens=1, logit_bias=both | {"1000": -100}) == second


def test_logprobs_spell_the_text(complete):
    choice = complete(logprobs=3).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.tokens


def test_logprobs_lie_side_by_side(complete):
    logprobs = complete(logprobs=3).choices[0].logprobs
    lists = [logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]
    assert [len(values) for values in lists] == [len(logprobs.tokens)] * 3


def test_logprobs_know_where_their_tokens_begin(complete):
    choice = complete(logprobs=3).choices[0]
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)


def test_logprobs_of_greedy_tokens_are_the_highest(complete):
    logprobs = complete(logprobs=3).choices[0].logprobs
    entries = zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    for token, logprob, top in entries:
        assert 1 <= len(top) <= 3
        assert logprob == top[token] == max(top.values()) <= 0


def test_logprobs_are_absent_unless_asked_for(complete):
    assert complete().choices[0].logprobs is None


def test_streamed_logprobs_equal_whole_ones(complete):
    whole = complete(logprobs=2).choices[0].logprobs
    tokens, offsets = [], []
    for chunk in complete(logprobs=2, stream=True):
        if logprobs := chunk.choices[0].logprobs:
            tokens += zip(logprobs.tokens, logprobs.token_logprobs, strict=True)
            offsets += logprobs.text_offset
    assert tokens == list(zip(whole.tokens, whole.token_logprobs, strict=True))
    assert offsets == whole.text_offset


def test_logprobs_end_before_a_stop_string(complete):
    whole = complete().choices[0].text
    stop = whole[9:25]
    choice = complete(logprobs=1, stop=stop).choices[0]
    *but_last, _ = choice.logprobs.tokens
    assert choice.text == whole[: whole.index(stop)]
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    assert len("".join(but_last)) < len(choice.text)
