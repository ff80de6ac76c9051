"""Streams: chunks, the SDK's helper, and what a reader that stops early leaves behind."""

import asyncio

import pytest


def contents(chunks, index=0):
    """The text that the chunks have for one choice."""
    deltas = [
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    ]
    return "".join(deltas)


def test_streams_the_whole_text(ask):
    chunks = list(ask(stream=True))
    assert contents(chunks) == ask().choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_without_include_usage_every_chunk_has_a_choice(ask):
    assert all(len(chunk.choices) == 1 for chunk in ask(stream=True))


def test_include_usage(ask):
    *rest, last = list(ask(stream=True, stream_options={"include_usage": True}))
    assert last.choices == []
    assert all(chunk.usage is None for chunk in rest)
    whole = ask().usage
    assert last.usage.prompt_tokens == whole.prompt_tokens
    assert last.usage.completion_tokens == whole.completion_tokens


def test_streamed_choices_equal_whole_ones(ask):
    sampled = {"n": 3, "temperature": 1, "seed": 7, "max_tokens": 16}
    whole = ask(**sampled).choices
    chunks = list(ask(stream=True, **sampled))
    assert [contents(chunks, choice.index) for choice in whole] == [
        choice.message.content for choice in whole
    ]
    ends = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(ends) == [0, 1, 2]


def test_usage_of_streamed_choices_is_one_chunk(ask):
    options = {"include_usage": True}
    chunks = list(ask(stream=True, n=2, max_tokens=6, stream_options=options))
    counted = [chunk for chunk in chunks if chunk.usage]
    assert len(counted) == 1
    assert counted[0].usage.completion_tokens == 12


def test_streamed_logprobs_spell_the_text(ask):
    chunks = list(ask(stream=True, logprobs=True, top_logprobs=2, max_tokens=10))
    tokens = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert len(tokens) == 10
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == contents(chunks)


def test_stop_strings_never_show(ask):
    full = ask().choices[0].message.content
    assert contents(ask(stream=True, stop=[" the"])) == full[: full.index(" the")]


def test_stream_helper_gathers_the_answer(client, ask, model):
    messages = [{"role": "user", "content": "What is prefill?"}]
    with client.chat.completions.stream(
        model=model, messages=messages, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = {event.type for event in events}
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == ask().choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert final.usage == ask().usage or final.usage.total_tokens == ask().usage.total_tokens


def test_stream_helper_with_several_choices_and_logprobs(client, model):
    with client.chat.completions.stream(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        n=2,
        logprobs=True,
        temperature=0.5,
        seed=1,
    ) as stream:
        final = stream.until_done().get_final_completion()
    for choice in final.choices:
        spelled = "".join(token.token for token in choice.logprobs.content)
        assert spelled == choice.message.content
    assert len(final.choices) == 2


def test_reader_may_stop_early(ask):
    stream = ask("Hello", stream=True, max_tokens=3000, extra_body={"ignore_eos": True})
    for _ in zip(range(3), stream):
        pass
    stream.close()
    assert ask("Hello", max_tokens=1).choices


def test_stream_as_a_context_manager(ask):
    with ask(stream=True) as stream:
        first = next(iter(stream))
    assert first.choices[0].delta.role == "assistant"


def test_asynchronous_streams_at_once(async_client, model, ask):
    questions = ["What is prefill?", "What is decode?", "What is a lease?", "What is TTFT?"]

    async def read(client, question):
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            stream=True,
        )
        return contents([chunk async for chunk in stream])

    async def read_all():
        async with async_client as client:
            return await asyncio.gather(*(read(client, question) for question in questions))

    whole = [ask(question).choices[0].message.content for question in questions]
    assert asyncio.run(read_all()) == whole


def test_cancelled_task_leaves_the_client_usable(async_client, model):
    async def cancel_one():
        async with async_client as client:
            endless = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=4000,
                extra_body={"ignore_eos": True},
            )
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(endless, timeout=0.05)
            return await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
            )

    assert asyncio.run(cancel_one()).usage.completion_tokens == 1
