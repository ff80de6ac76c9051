"""Chat completions: what people set and what they read."""

import pytest


def text_of(answer):
    return answer.choices[0].message.content


def test_answers_a_question(ask, model):
    answer = ask("What is prefill?")
    assert "prefill" in text_of(answer).lower()
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.refusal is None
    assert answer.choices[0].message.tool_calls is None


def test_conversation_of_several_turns(ask):
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for question in ("What is decode?", "Tell me more.", "What is the KV cache?"):
        messages.append({"role": "user", "content": question})
        answer = ask(messages)
        messages.append(answer.choices[0].message.model_dump(exclude_none=True))
    assert text_of(answer)
    assert answer.usage.prompt_tokens > 30
    assert len(messages) == 7


def test_message_object_of_the_answer_can_be_sent_back(ask):
    first = ask("What is a lease?").choices[0].message
    messages = [{"role": "user", "content": "What is a lease?"}, first]
    assert text_of(ask([*messages, {"role": "user", "content": "Tell me more."}]))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_are_part_of_the_prompt(ask, role):
    question = {"role": "user", "content": "Hello"}
    alone = ask([question]).usage.prompt_tokens
    instructed = ask([{"role": role, "content": "Be brief, please."}, question])
    assert instructed.usage.prompt_tokens > alone


def test_text_parts_equal_the_string(ask):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "decode?"}]
    assert ask([{"role": "user", "content": parts}]).choices[0].message.content


def test_names_of_speakers_are_accepted(ask):
    assert text_of(ask([{"role": "user", "name": "alice", "content": "Hello"}]))


def test_several_choices(ask):
    answer = ask(n=3, temperature=1, seed=7, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.role == "assistant" for choice in answer.choices)
    assert 3 <= answer.usage.completion_tokens <= 36


def test_first_of_several_choices_is_the_only_one(ask):
    sampled = {"temperature": 1, "seed": 11, "max_tokens": 24}
    assert text_of(ask(n=2, **sampled)) == text_of(ask(**sampled))


def test_greedy_choices_are_equal(ask):
    choices = ask(n=2, max_tokens=8).choices
    assert choices[0].message.content == choices[1].message.content


def test_choices_differ(ask):
    choices = ask(n=8, temperature=1.5, seed=3, max_tokens=24).choices
    assert len({choice.message.content for choice in choices}) > 1


def test_usage_of_several_choices_counts_the_prompt_once(ask):
    one, three = ask(max_tokens=4).usage, ask(n=3, max_tokens=4).usage
    assert three.prompt_tokens == one.prompt_tokens
    assert three.completion_tokens == 12
    assert three.total_tokens == three.prompt_tokens + 12


def test_usage_has_details(ask):
    usage = ask(max_tokens=3).usage
    assert usage.completion_tokens == 3
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_logprobs_spell_the_text(ask):
    choice = ask(logprobs=True, top_logprobs=4, max_tokens=12).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 12
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 4
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def test_each_choice_has_its_logprobs(ask):
    answer = ask(n=2, temperature=1, seed=5, logprobs=True, max_tokens=6)
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == choice.message.content


@pytest.mark.parametrize("stop", [" the", [" the", " zebra"]])
def test_stop_strings_are_cut_off(ask, stop):
    full = text_of(ask())
    answer = ask(stop=stop)
    assert text_of(answer) == full[: full.index(" the")]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_length_limit(ask, limit):
    answer = ask(**{limit: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_seed_makes_it_repeatable(ask):
    texts = {text_of(ask(temperature=1.2, seed=42, max_tokens=20)) for _ in range(3)}
    assert len(texts) == 1


def test_without_a_seed_it_varies(ask):
    texts = {text_of(ask(temperature=2, max_tokens=40)) for _ in range(12)}
    assert len(texts) > 1


def test_logit_bias_forces_a_token(ask):
    answer = ask(logit_bias={"400": 100}, max_tokens=3, logprobs=True)
    assert len({token.token for token in answer.choices[0].logprobs.content}) == 1


def test_penalties_change_the_text(ask):
    long = {"max_tokens": 150, "extra_body": {"ignore_eos": True}}
    penalised = text_of(ask(frequency_penalty=2, presence_penalty=2, **long))
    assert penalised != text_of(ask(**long))


def test_what_only_accounts_for_usage_is_accepted(ask):
    answer = ask(
        max_tokens=2,
        user="somebody",
        metadata={"trace": "42"},
        store=False,
        service_tier="auto",
        safety_identifier="hash",
        prompt_cache_key="key",
        reasoning_effort="low",
        verbosity="low",
        parallel_tool_calls=None,
    )
    assert answer.choices[0].finish_reason == "length"


def test_engine_extensions_in_the_extra_body(ask):
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "ignore_eos": True}
    answer = ask(temperature=1, max_tokens=40, extra_body=extra)
    assert answer.usage.completion_tokens == 40
