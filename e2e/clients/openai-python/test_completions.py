"""Text completions: prompts as strings, lists and token ids; echo, logprobs, best_of."""

import pytest

PROMPT = "What is prefill?"


@pytest.fixture(scope="session")
def complete(client, model):
    """A text completion, greedy unless told otherwise."""

    def create(prompt=PROMPT, temperature=0, max_tokens=8, **more):
        return client.completions.create(
            model=model, prompt=prompt, temperature=temperature, max_tokens=max_tokens, **more
        )

    return create


def texts(answer):
    return [choice.text for choice in answer.choices]


def test_continues_a_prompt(complete, model):
    answer = complete()
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == model
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 8


def test_streams_the_same_text(complete):
    streamed = "".join(chunk.choices[0].text for chunk in complete(stream=True))
    assert [streamed] == texts(complete())


def test_token_ids_equal_their_text(complete, tokenize):
    by_text, by_tokens = complete(), complete(tokenize(PROMPT))
    assert texts(by_text) == texts(by_tokens)
    assert by_text.usage == by_tokens.usage or (
        by_text.usage.prompt_tokens == by_tokens.usage.prompt_tokens
    )


def test_several_prompts(complete):
    prompts = [PROMPT, "A lease", "The router"]
    answer = complete(prompts)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts(answer) == [texts(complete(prompt))[0] for prompt in prompts]


def test_usage_of_several_prompts_is_their_sum(complete):
    alone = [complete(prompt).usage for prompt in (PROMPT, "A lease")]
    both = complete([PROMPT, "A lease"]).usage
    assert both.prompt_tokens == sum(usage.prompt_tokens for usage in alone)
    assert both.completion_tokens == sum(usage.completion_tokens for usage in alone)


def test_several_prompts_as_token_ids(complete, tokenize):
    prompts = [PROMPT, "A lease"]
    assert texts(complete([tokenize(p) for p in prompts])) == texts(complete(prompts))


def test_several_prompts_with_several_choices_each(complete):
    answer = complete([PROMPT, "A lease"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    first, second = texts(complete([PROMPT, "A lease"]))
    assert texts(answer) == [first, first, second, second]


def test_streamed_prompts_equal_whole_ones(complete):
    gathered = {}
    for chunk in complete([PROMPT, "A lease"], stream=True):
        for choice in chunk.choices:
            gathered[choice.index] = gathered.get(choice.index, "") + choice.text
    assert [gathered[0], gathered[1]] == texts(complete([PROMPT, "A lease"]))


def test_echo_puts_the_prompt_first(complete):
    assert texts(complete(echo=True)) == [PROMPT + texts(complete())[0]]


def test_echo_of_a_stream(complete):
    streamed = "".join(chunk.choices[0].text for chunk in complete(echo=True, stream=True))
    assert [streamed] == texts(complete(echo=True))


def test_echo_alone_scores_the_prompt(complete, tokenize):
    choice = complete(echo=True, max_tokens=0, logprobs=1).choices[0]
    tokens = tokenize(PROMPT)
    assert choice.text == PROMPT
    assert len(choice.logprobs.tokens) == len(tokens)
    assert choice.logprobs.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert "".join(choice.logprobs.tokens) == PROMPT


def test_logprobs_have_four_lists_of_one_length(complete):
    choice = complete(logprobs=3).choices[0]
    found = choice.logprobs
    lengths = [found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset]
    assert [len(each) for each in lengths] == [8] * 4
    assert "".join(found.tokens) == choice.text
    assert all(len(top) >= 3 for top in found.top_logprobs)
    assert found.text_offset[0] in (0, len(PROMPT))
    assert found.text_offset == sorted(found.text_offset)


def test_best_of_returns_fewer_than_it_makes(complete):
    answer = complete(best_of=4, n=2, temperature=1, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens <= 32


def test_best_of_is_the_likeliest(complete):
    endless = {"ignore_eos": True}
    sampled = {"temperature": 1, "seed": 3, "logprobs": 0, "extra_body": endless}

    def score(choice):
        logprobs = choice.logprobs.token_logprobs
        return sum(logprobs) / len(logprobs)

    best = complete(best_of=5, n=1, **sampled).choices[0]
    every = complete(n=5, **sampled).choices
    assert score(best) == pytest.approx(max(map(score, every)))


def test_stop_strings(complete):
    long = {"max_tokens": 30}
    full = texts(complete(**long))[0]
    word = full.split()[3]
    answer = complete(stop=[word], **long)
    assert texts(answer) == [full[: full.index(word)]]
    assert answer.choices[0].finish_reason == "stop"


def test_no_tokens_at_all(complete):
    answer = complete(max_tokens=0)
    assert texts(answer) == [""]
    assert answer.usage.completion_tokens == 0
