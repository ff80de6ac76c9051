"""An agent's model: the served one through the OpenAI provider."""

import openai
import pytest
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


@pytest.fixture
def chat_model(base_url, model):
    """Makes the model as agents take it; each has connections of its own, for its own loop."""

    def make(name=model):
        client = openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=120)
        return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))

    return make
