"""LangChain's own suite for chat models: what every integration must be able to do."""

import os

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "base_url": os.environ["STATOR_BASE_URL"],
            "model": os.environ["STATOR_SERVED_MODEL"],
            "api_key": "any",
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def standard_chat_model_params(self):
        """Sampled, because the greedy text of a tiny model may go round in circles for ever."""
        return {"temperature": 1, "seed": 1, "max_tokens": 4000, "timeout": 120}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream=False):
        """The same question twice, so that the second finds the first in the cache."""
        model = ChatOpenAI(**self.chat_model_params, **self.standard_chat_model_params)
        question = "Please explain to me in a few words what the KV cache is and who needs it."
        model.invoke(question)
        if not stream:
            return model.invoke(question)
        chunks = list(model.stream(question))
        return sum(chunks[1:], chunks[0])
