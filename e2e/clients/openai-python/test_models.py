"""The list of models."""

import openai
import pytest


def test_lists_the_served_model(client, model):
    listed = client.models.list()
    assert [entry.id for entry in listed] == [model]
    assert listed.object == "list"
    assert listed.data[0].object == "model"
    assert listed.data[0].created > 0
    assert listed.data[0].owned_by


def test_retrieves_one_model(client, model):
    assert client.models.retrieve(model) == client.models.list().data[0]


def test_absent_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-absent")
    assert caught.value.code == "model_not_found"
