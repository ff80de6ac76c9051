"""What is served, and whether it can be asked."""

import openai
import pytest

from plain_http import request


def test_lists_the_model(client, server):
    models = client.models.list()
    assert models.object == "list"
    assert [model.id for model in models.data] == [server.model]


def test_describes_the_model(client, server):
    model = client.models.retrieve(server.model)
    assert (model.id, model.object) == (server.model, "model")
    assert model.created > 0
    assert model.owned_by
    assert model.max_model_len > 0


@pytest.mark.parametrize("name", ["absent", "absent/with-slash", "with space", "ünknown"])
def test_does_not_know_other_models(client, name):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    assert caught.value.code == "model_not_found"
    assert name in caught.value.message


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_is_healthy(server, path):
    assert request(server, "GET", path).status == 200


def test_name_that_is_no_text_is_an_error_like_others(server):
    answer = request(server, "GET", "/v1/models/%ff")
    assert answer.status in (400, 404)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
