"""Chat completions: the demo model's answers, whole and in streams."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from plain_http import chunks, post, streaming

PATH = "/v1/chat/completions"
QUESTION = "What is prefill?"

TOPICS = [
    (QUESTION, ["prefill", "prompt"]),
    ("What is decode?", ["decode", "one token"]),
    ("What is TTFT?", ["time to first token"]),
    ("What is a KV block?", ["KV block", "16 tokens"]),
    ("What is continuous batching?", ["continuous batching", "step"]),
    ("What is the prefix cache?", ["prefix cache", "reuse"]),
    ("How do I change the listen address?", ["--listen"]),
    ("How do I use the OpenAI SDK with Stator?", ["base_url", "OpenAI"]),
    ("What is a lease?", ["lease", "KV blocks"]),
    ("Who are you?", ["demo model of Stator"]),
]


def user(text):
    return [{"role": "user", "content": text}]


def body(server, text=QUESTION, **more):
    return {"model": server.model, "messages": user(text), "temperature": 0, **more}


def ask(client, server, text=QUESTION, **more):
    return client.chat.completions.create(**body(server, text, **more))


def stream_chunks(server, **more):
    """The chunks of a streamed answer, as JSON."""
    answer = post(server, PATH, body(server, stream=True, **more))
    assert answer.status == 200
    return chunks(answer.body)


@pytest.mark.parametrize(("question", "keywords"), TOPICS)
def test_answers(client, server, question, keywords):
    answer = ask(client, server, question)
    choice = answer.choices[0]
    assert [word for word in keywords if word.lower() not in choice.message.content.lower()] == []
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("question", [question for question, _ in TOPICS])
def test_streams_the_same_text(client, server, question):
    whole = ask(client, server, question).choices[0].message.content
    deltas = [chunk.choices[0].delta for chunk in ask(client, server, question, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == whole


def test_describes_the_answer(client, server):
    answer = ask(client, server)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == server.model
    assert [choice.index for choice in answer.choices] == [0]


def test_answers_asked_at_once_equal_those_asked_alone(client, server):
    def text(question):
        return ask(client, server, question).choices[0].message.content

    questions = [question for question, _ in TOPICS]
    alone = [text(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(text, questions)) == alone


def test_system_and_text_parts_are_understood(client, server):
    messages = [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    answer = client.chat.completions.create(model=server.model, messages=messages, temperature=0)
    assert "prefill" in answer.choices[0].message.content.lower()


def test_usage_adds_up(client, server):
    usage = ask(client, server).usage
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_stops_at_the_limit(client, server, limit):
    answer = ask(client, server, **{limit: 5})
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_second_turn_finds_the_first_in_the_cache(client, server):
    salt = {"cache_salt": str(uuid.uuid4())}
    messages = user("Please explain to me in a few words what prefill is and why it matters.")

    def turn():
        return client.chat.completions.create(
            model=server.model, messages=messages, temperature=0, extra_body=salt
        )

    first = turn()
    assert first.usage.prompt_tokens > 16
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    messages.append({"role": "assistant", "content": first.choices[0].message.content})
    messages += user("Can you say more?")
    second = turn()
    assert 0 < second.usage.prompt_tokens_details.cached_tokens < second.usage.prompt_tokens


def test_cached_prefix_does_not_change_the_answer(client, server):
    salt = {"cache_salt": str(uuid.uuid4())}
    question = "Hello! I am new to all this. Could you please tell me: what is prefill?"
    fresh, cached = (ask(client, server, question, extra_body=salt) for _ in range(2))
    assert cached.usage.prompt_tokens_details.cached_tokens > 0
    assert cached.choices[0].message.content == fresh.choices[0].message.content


def test_other_salt_does_not_share_the_cache(client, server):
    def cached_tokens():
        salt = {"cache_salt": str(uuid.uuid4())}
        answer = ask(client, server, QUESTION * 5, max_tokens=1, extra_body=salt)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [cached_tokens() for _ in range(3)] == [0, 0, 0]


def test_first_chunk_carries_the_role(server):
    first, *rest = stream_chunks(server)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in rest)


def test_last_chunk_carries_the_finish_reason_alone(server):
    *rest, last = stream_chunks(server)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in rest)


def test_chunks_belong_together(server):
    answer = stream_chunks(server)
    assert {chunk["object"] for chunk in answer} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in answer}) == 1


def test_no_usage_unless_asked_for(server):
    answer = stream_chunks(server)
    assert all(len(chunk["choices"]) == 1 for chunk in answer)
    assert not any(chunk.get("usage") for chunk in answer)


def test_include_usage_adds_one_chunk(client, server):
    *rest, last = stream_chunks(server, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert all(len(chunk["choices"]) == 1 for chunk in rest)
    assert [chunk["usage"] for chunk in rest] == [None] * len(rest)
    whole = ask(client, server).usage
    assert last["usage"]["prompt_tokens"] == whole.prompt_tokens
    assert last["usage"]["completion_tokens"] == whole.completion_tokens
    assert last["usage"]["total_tokens"] == whole.total_tokens


def test_continuous_usage_counts_up(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = stream_chunks(server, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in answer]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] > counts[0]


def test_stream_limit_is_a_length(server):
    answer = stream_chunks(server, max_tokens=5, stream_options={"include_usage": True})
    assert answer[-2]["choices"][0]["finish_reason"] == "length"
    assert answer[-1]["usage"]["completion_tokens"] == 5


def test_stream_headers(server):
    with streaming(server, PATH, body(server)) as response:
        essence = response.headers["content-type"].split(";")[0]
        assert essence == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        response.read()


def test_stream_is_data_and_comments_only(server):
    raw = post(server, PATH, body(server, stream=True)).body
    lines = [line for line in raw.split(b"\n") if line]
    assert [line for line in lines if not line.startswith((b"data: ", b":"))] == []
    assert raw.endswith(b"\n\ndata: [DONE]\n\n")
    assert raw.count(b"[DONE]") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_echoes_the_request_id(server, stream):
    answer = post(server, PATH, body(server, stream=stream), {"x-request-id": "trace-42"})
    assert answer.headers["x-request-id"] == "trace-42"


def test_makes_a_request_id(server):
    ids = [post(server, PATH, body(server)).headers["x-request-id"] for _ in range(2)]
    assert all(ids)
    assert ids[0] != ids[1]


def test_says_how_long_it_took(server):
    assert int(post(server, PATH, body(server)).headers["openai-processing-ms"]) >= 0


def test_logprobs_spell_the_text(client, server):
    choice = ask(client, server, logprobs=True, top_logprobs=3).choices[0]
    spelled = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert spelled.decode() == choice.message.content
    assert all(bytes(token.bytes).decode() == token.token for token in choice.logprobs.content)


def test_logprobs_are_sorted(client, server):
    content = ask(client, server, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    for token in content:
        top = [alternative.logprob for alternative in token.top_logprobs]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert all(logprob <= 0 for logprob in top)
        # Greedy: the token is the likeliest.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, top[0])


def test_logprobs_without_alternatives(client, server):
    content = ask(client, server, logprobs=True).choices[0].logprobs.content
    assert content
    assert all(token.top_logprobs == [] for token in content)


def test_logprobs_are_absent_unless_asked_for(client, server):
    assert ask(client, server).choices[0].logprobs is None


def test_streamed_logprobs_equal_whole_ones(client, server):
    asked = {"logprobs": True, "top_logprobs": 2}
    whole = ask(client, server, **asked).choices[0].logprobs.content
    streamed = []
    for chunk in ask(client, server, stream=True, **asked):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [token.to_dict() for token in streamed] == [token.to_dict() for token in whole]
