"""instructor around the OpenAI SDK, in the mode that a test asks for."""

import instructor
import openai
import pytest


@pytest.fixture
def patched(base_url):
    """An instructor client of a mode."""

    def make(mode, asynchronous=False):
        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        plain = kind(base_url=base_url, api_key="any", max_retries=0, timeout=120)
        return instructor.from_openai(plain, mode=mode)

    return make


@pytest.fixture
def request_of(model):
    """The arguments of a request that no instruction steers, and whose answer must end."""

    def make(content="How is the weather?", **more):
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 2,
            "max_tokens": 400,
            "max_retries": 0,
            **more,
        }

    return make
