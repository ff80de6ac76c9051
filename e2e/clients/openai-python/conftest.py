"""The OpenAI SDK, synchronous and asynchronous; without retries, which would hide failures."""

import openai
import pytest

DEADLINE_S = 120


@pytest.fixture(scope="session")
def client(base_url):
    """The synchronous client."""
    with openai.OpenAI(
        base_url=base_url, api_key="any", timeout=DEADLINE_S, max_retries=0
    ) as client:
        yield client


@pytest.fixture
def async_client(base_url):
    """An asynchronous client; use it in an `async with` inside of `asyncio.run`."""
    return openai.AsyncOpenAI(
        base_url=base_url, api_key="any", timeout=DEADLINE_S, max_retries=0
    )


@pytest.fixture(scope="session")
def ask(client, model):
    """A chat completion, greedy unless told otherwise."""

    def create(messages="What is prefill?", temperature=0, **more):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return client.chat.completions.create(
            model=model, messages=messages, temperature=temperature, **more
        )

    return create


@pytest.fixture(scope="session")
def tokenize(client, model):
    """A text's token ids, from the server's own endpoint."""

    def post(text):
        url = str(client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
        answer = client.post(url, cast_to=object, body={"model": model, "prompt": text})
        return answer["tokens"]

    return post
