"""Wrong requests: the SDK's exception classes, with `param`, `code` and a readable message."""

import asyncio
import socket

import openai
import pytest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

# (fields, param, code)
WRONG = [
    ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": -0.5}, "top_p", "decimal_below_min_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 130}, "n", "integer_above_max_value"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
    ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=[str(w[0]) for w in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_value(client, model, fields, param, code, stream):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body, stream=stream)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (400, param, code)
    assert error.type == "invalid_request_error"
    assert error.message
    assert error.request_id


def test_wording_of_a_value_out_of_range(ask):
    with pytest.raises(openai.BadRequestError, match="Invalid 'n': integer above maximum value"):
        ask(n=130)


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="gpt-absent", messages=[{"role": "user", "content": "Hello"}]
        )
    assert caught.value.code == "model_not_found"
    assert "gpt-absent" in caught.value.message


def test_context_that_is_too_long(ask):
    with pytest.raises(openai.BadRequestError) as caught:
        ask("prefill " * 20_000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_unknown_address(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/no-such-thing", cast_to=object)
    assert caught.value.code == "unknown_url"


def test_suffix_is_refused(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="a", suffix="b")
    assert caught.value.param == "suffix"


def test_image_is_refused(ask):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask([{"role": "user", "content": [image]}])
    assert caught.value.param == "messages[0].content[0]"


def test_asynchronous_client_raises_the_same(async_client):
    async def create():
        async with async_client as client:
            await client.chat.completions.create(
                model="gpt-absent", messages=[{"role": "user", "content": "Hello"}]
            )

    with pytest.raises(openai.NotFoundError):
        asyncio.run(create())


def test_wrong_requests_are_not_retried(base_url, model):
    """The SDK would try again what it takes for a passing trouble."""
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=2) as client:
        raw = client.chat.completions.with_raw_response
        with pytest.raises(openai.BadRequestError) as caught:
            raw.create(model=model, messages=[], extra_headers={})
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=address, api_key="any", max_retries=0) as client:
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
