"""One server for all tests that do not start their own."""

import os
import re
from pathlib import Path

import openai
import pytest

from stator_process import DEADLINE_S, REPOSITORY, Server

UNEXPECTED = re.compile(r"\b(WARN|ERROR)\b|panicked")


@pytest.fixture(scope="session")
def server():
    """The bundled model, served. Its log must stay clean and Ctrl-C must end it."""
    with Server() as server:
        yield server
        server.interrupt()
        assert server.exit_code() == 0
        assert [line for line in server.stderr.to_end() if UNEXPECTED.search(line)] == []


@pytest.fixture(scope="session")
def client(server):
    """The OpenAI SDK; without retries, which would hide failures."""
    with openai.OpenAI(
        base_url=server.base_url, api_key="any", timeout=DEADLINE_S, max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="session")
def demo_directory():
    """The model directory that the server serves if it is given none."""
    directory = Path(os.environ.get("STATOR_MODEL") or REPOSITORY / "models/demo")
    assert (directory / "tokenizer.json").is_file(), f"{directory} holds no model"
    return directory


@pytest.fixture(scope="session")
def fixture_directory():
    """A tiny model of random weights without a tokenizer."""
    return REPOSITORY / "engine/tests/fixtures/qwen3-tied"
