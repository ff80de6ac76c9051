"""Raw responses, headers, timeouts, and many requests at once."""

import asyncio

import openai
import pytest

BODY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}


def test_raw_response_has_headers(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, **BODY)
    assert raw.status_code == 200
    assert raw.headers["content-type"].split(";")[0] == "application/json"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["x-request-id"] == raw.request_id
    assert raw.parse().choices[0].message.content


def test_request_id_is_part_of_the_answer(client, model):
    answer = client.chat.completions.create(model=model, **BODY)
    assert answer._request_id


def test_request_id_of_the_client_is_kept(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, **BODY, extra_headers={"x-request-id": "trace-7"}
    )
    assert raw.headers["x-request-id"] == "trace-7"


def test_headers_of_a_stream(client, model):
    with client.chat.completions.with_streaming_response.create(
        model=model, **BODY, stream=True
    ) as response:
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith(("data: ", ":")) for line in lines)


def test_timeout_and_the_next_request(client, model):
    long = {**BODY, "max_tokens": 4000}
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).chat.completions.create(
            model=model, **long, extra_body={"ignore_eos": True}
        )
    assert client.chat.completions.create(model=model, **BODY).usage.completion_tokens == 4


def test_many_at_once_equal_one_alone(async_client, client, model):
    async def ask_all():
        async with async_client as many:
            requests = [many.chat.completions.create(model=model, **BODY) for _ in range(24)]
            return await asyncio.gather(*requests)

    alone = client.chat.completions.create(model=model, **BODY).choices[0].message.content
    answers = asyncio.run(ask_all())
    assert {answer.choices[0].message.content for answer in answers} == {alone}
    assert len({answer.id for answer in answers}) == 24


def test_query_and_headers_that_nobody_knows(client, model):
    answer = client.chat.completions.create(
        model=model, **BODY, extra_query={"api-version": "1"}, extra_headers={"x-own": "1"}
    )
    assert answer.choices


def test_organization_and_project_headers(base_url, model):
    with openai.OpenAI(
        base_url=base_url, api_key="any", organization="org", project="project"
    ) as client:
        assert client.chat.completions.create(model=model, **BODY).choices
