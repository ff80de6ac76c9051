"""Model directories that cannot be served: exit code 64 and one sentence that says why."""

import struct

import pytest

from model_files import copy, edit_json, edit_tensors
from stator_process import check_sentence, run

NORM = "model.norm.weight"


def check_refused(model, *parts):
    """Serving `model` must fail with a single sentence that has all `parts`."""
    ended = run("serve", "--listen", "127.0.0.1:0", model)
    # Every refusal names the path, and says what to do after a semicolon.
    check_sentence(ended, 64, str(model), "; ", *parts)


@pytest.fixture
def tiny(fixture_directory, tmp_path):
    """A small model of random weights without a tokenizer, to be broken."""
    return copy(fixture_directory, tmp_path / "tiny")


@pytest.fixture
def demo(demo_directory, tmp_path):
    """The bundled model, to be broken."""
    return copy(demo_directory, tmp_path / "demo")


def test_path_that_does_not_exist(tmp_path):
    check_refused(tmp_path / "absent", "does not exist", "give a directory")


def test_path_of_a_file(tiny):
    check_refused(tiny / "config.json", "is a file of another kind", "give a directory")


def test_directory_without_config(tiny):
    (tiny / "config.json").unlink()
    check_refused(tiny, "config.json", "MODEL must be a model directory")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architectures": ["Qwen3ForCausalLM"]}'])
def test_corrupt_config(tiny, text):
    (tiny / "config.json").write_text(text)
    check_refused(tiny, "config.json")


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("architectures", ["MambaForCausalLM"], "architecture MambaForCausalLM"),
        ("architectures", [], "architecture"),
        ("hidden_act", "gelu", "hidden_act gelu"),
        ("mlp_bias", True, "mlp_bias"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "yarn"),
    ],
)
def test_unsupported_model(tiny, field, value, part):
    edit_json(tiny / "config.json", **{field: value})
    check_refused(tiny, "config.json", part, "not supported", "supported: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", "64"),
        ("hidden_size", 1 << 40),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("head_dim", 31),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", -1),
    ],
)
def test_impossible_shape(tiny, field, value):
    edit_json(tiny / "config.json", **{field: value})
    check_refused(tiny, "config.json", "not usable")


def test_settings_that_the_weights_do_not_have(tiny):
    edit_json(tiny / "config.json", attention_bias=True)
    check_refused(tiny, "q_proj.bias is missing")


def test_missing_weights(tiny):
    (tiny / "model.safetensors").unlink()
    check_refused(tiny, "model.safetensors", "MODEL must hold its weights")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights(tiny, keep):
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    check_refused(tiny, "model.safetensors", "download the model again")


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 16) + b"this is no JSON!",
        struct.pack("<Q", 2) + b"[]",
        b"\xff" * 16,
    ],
)
def test_corrupt_header(tiny, header):
    weights = tiny / "model.safetensors"
    weights.write_bytes(header + weights.read_bytes()[len(header) :])
    check_refused(tiny, "model.safetensors", "download the model again")


def test_missing_tensor(tiny):
    edit_tensors(tiny, lambda header: header.update(other=header.pop(NORM)))
    check_refused(tiny, f"tensor {NORM} is missing", "download the model again")


def test_wrong_shape(tiny):
    edit_tensors(tiny, lambda header: header[NORM].update(shape=[2, 32]))
    check_refused(tiny, f"tensor {NORM} has shape [2, 32]", "[64]", "download the model again")


def test_shape_that_config_contradicts(tiny):
    edit_json(tiny / "config.json", intermediate_size=128)
    check_refused(tiny, "has shape", "128", "download the model again")


def test_unsupported_number_type(tiny):
    edit_tensors(tiny, lambda header: header[NORM].update(dtype="I32"))
    check_refused(tiny, "I32", NORM, "not supported")


@pytest.mark.parametrize(
    "index", ["{", "{}", '{"weight_map": {"a": "../other"}}', '{"weight_map": {"a": "absent"}}']
)
def test_corrupt_index(tiny, index):
    (tiny / "model.safetensors.index.json").write_text(index)
    check_refused(tiny)


def test_missing_tokenizer(tiny):
    check_refused(tiny, "tokenizer.json", "MODEL must hold a tokenizer.json")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "1.0", "model": {"type": "Odd"}}'])
def test_corrupt_tokenizer(demo, text):
    (demo / "tokenizer.json").write_text(text)
    check_refused(demo, "tokenizer.json", "download the model again")


def test_corrupt_tokenizer_settings(demo):
    (demo / "tokenizer_config.json").write_text("{")
    check_refused(demo, "tokenizer_config.json", "download the model again")


@pytest.mark.parametrize("template", ["{% for", "{{ messages", "{% endif %}"])
def test_corrupt_chat_template(demo, template):
    edit_json(demo / "tokenizer_config.json", chat_template=template)
    check_refused(demo, "chat template", "download the model again")


def test_chat_template_that_cannot_render(demo):
    # It parses, but no conversation can be rendered: the filter does not exist.
    edit_json(demo / "tokenizer_config.json", chat_template="{{ 1 | odd }}")
    check_refused(demo, "chat template", "download the model again")


def test_tokenizer_of_another_model(tiny, demo):
    # Its tokens are above the tiny model's 384.
    (demo / "tokenizer.json").rename(tiny / "tokenizer.json")
    check_refused(tiny, "tokenizer.json")
