"""Where the server is that `run.py` started."""

import os

import pytest

BASE_URL = os.environ["STATOR_BASE_URL"]
MODEL = os.environ["STATOR_SERVED_MODEL"]


@pytest.fixture(scope="session")
def base_url():
    """The API's address, with `/v1`."""
    return BASE_URL


@pytest.fixture(scope="session")
def model():
    """The name of the served model."""
    return MODEL
