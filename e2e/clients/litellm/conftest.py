"""LiteLLM's functions with the served model filled in."""

import litellm
import pytest


@pytest.fixture
def settings(base_url, model):
    """What every call needs to reach the server, without retries."""
    return {
        "model": f"openai/{model}",
        "api_base": base_url,
        "api_key": "any",
        "num_retries": 0,
        "max_retries": 0,
        "timeout": 120,
        "temperature": 0,
    }


@pytest.fixture
def complete(settings):
    """A chat completion."""

    def create(content="What is prefill?", **more):
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        return litellm.completion(**{**settings, "messages": messages, **more})

    return create
