"""A model of a Hugging Face directory as a GGUF file."""

import json
import math

import gguf
import numpy

import vocabulary
import weights
from shapes import LLAMA3_ROPE

# Added to each file's name. Norms and biases stay in f32, as converters write them.
TYPES = {name: getattr(gguf.GGMLQuantizationType, name) for name in ("BF16", "F16", "Q8_0", "Q4_0", "Q5_0")}
FILE_TYPES = {"BF16": gguf.LlamaFileType.MOSTLY_BF16, "F16": gguf.LlamaFileType.MOSTLY_F16,
              "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
              "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0}
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path, shape, directory, type_name):
    """The directory's weights with every matrix in one type."""
    writer = gguf.GGUFWriter(path, shape.family)
    add_settings(writer, shape, type_name)
    add_tokenizer(writer, shape, directory)
    for name, bits in weights.read(directory / "model.safetensors").items():
        add_tensor(writer, shape, name, bits, type_name)
    if shape.rope_factor:
        writer.add_tensor("rope_freqs.weight", rope_factors(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_settings(writer, shape, type_name):
    writer.add_name(shape.name)
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    if shape.family == "llama":
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_vocab_size(shape.vocabulary)


def add_tokenizer(writer, shape, directory):
    parsed = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = parsed["model"]["vocab"]
    special = {token["id"]: token["special"] for token in parsed["added_tokens"]}
    ids |= {token["content"]: token["id"] for token in parsed["added_tokens"]}
    tokens = sorted(ids, key=ids.get)
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED, None: gguf.TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.SPLIT_NAME)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[special.get(number)] for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in parsed["model"]["merges"]])
    writer.add_eos_token_id(vocabulary.END)
    writer.add_pad_token_id(vocabulary.PADDING)
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


def add_tensor(writer, shape, name, bits, type_name):
    if shape.family == "llama" and ("q_proj" in name or "k_proj" in name):
        bits = with_neighbours_rotated(bits, shape.heads if "q_proj" in name else shape.kv_heads)
    if bits.ndim == 1:
        writer.add_tensor(gguf_name(name), widened(bits))
    elif type_name == "BF16":
        # Bytes, because numpy has no such type.
        raw = numpy.ascontiguousarray(bits).view(numpy.uint8)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=TYPES[type_name])
    elif type_name == "F16":
        writer.add_tensor(gguf_name(name), widened(bits).astype(numpy.float16))
    else:
        raw = gguf.quants.quantize(widened(bits), TYPES[type_name])
        writer.add_tensor(gguf_name(name), raw, raw_dtype=TYPES[type_name])


def gguf_name(name):
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def widened(bits):
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def with_neighbours_rotated(bits, heads):
    """Files of the llama family rotate elements 2i and 2i + 1 of a head together where Hugging Face's
    rotate i and i + head_dim / 2: rows change places."""
    rows, columns = bits.shape
    halves = bits.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def rope_factors(shape):
    """By what Llama 3's long contexts divide each rotary frequency."""
    low, high, original = (LLAMA3_ROPE[key] for key in LLAMA3_ROPE)
    factors = []
    for pair in range(shape.head_dim // 2):
        turns = original / (2 * math.pi * shape.rope_theta ** (2 * pair / shape.head_dim))
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - share) / shape.rope_factor + share))
    return numpy.array(factors, numpy.float32)


def tensor_bytes(path):
    """Bytes of all tensors of a file."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
