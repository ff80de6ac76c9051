"""The chat model of LangChain's OpenAI integration."""

import pytest
from langchain_openai import ChatOpenAI

SETTINGS = {"api_key": "any", "temperature": 0, "timeout": 120, "max_retries": 0}


@pytest.fixture
def chat(base_url, model):
    """Makes a chat model of the server; further settings win."""

    def make(**more):
        return ChatOpenAI(**{"base_url": base_url, "model": model, **SETTINGS, **more})

    return make
