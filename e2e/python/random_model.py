"""A model of random weights with the demo's tokenizer: what it says is noise, whatever it is asked."""

import json
import random
import shutil
import struct

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 64, 2, 4, 2, 16, 128


def make(demo, target, seed=1):
    """Writes the model directory `target` in the architecture of the one at `demo`."""
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(demo / name, target / name)
    config = json.loads((demo / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
    }
    for per_layer in ("layer_types", "max_window_layers"):
        config.pop(per_layer, None)
    (target / "config.json").write_text(json.dumps(config))
    write_tensors(target / "model.safetensors", shapes(config["vocab_size"]), random.Random(seed))
    return target


def shapes(vocabulary):
    """The tensors of a Qwen 3 decoder with tied embeddings."""
    yield "model.embed_tokens.weight", (vocabulary, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in [
            ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ]:
            yield f"{prefix}{name}.weight", (rows, columns)
        for name, length in [
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", HEAD_DIM),
            ("self_attn.k_norm", HEAD_DIM),
        ]:
            yield f"{prefix}{name}.weight", (length,)


def write_tensors(path, tensors, rng):
    """A safetensors file of bf16: norms are one, matrices are noise."""
    header, body = {}, bytearray()
    for name, shape in tensors:
        start = len(body)
        if len(shape) == 1:
            body += struct.pack("<H", 0x3F80) * shape[0]
        else:
            noise = (rng.uniform(-0.3, 0.3) for _ in range(shape[0] * shape[1]))
            body += b"".join(struct.pack("<f", value)[2:] for value in noise)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, len(body)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
