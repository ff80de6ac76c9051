"""The shapes that are measured: those of real models, with random weights."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Shape:
    """A decoder as its `config.json` and its GGUF file describe it. Its output layer is its embedding."""

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    context: int
    rope_theta: float
    epsilon: float
    biases: bool = False
    head_norms: bool = False
    rope_factor: float | None = None

    @property
    def head_dim(self):
        return self.hidden // self.heads

    def config(self):
        """What `config.json` says."""
        config = {
            "architectures": [f"{self.family.capitalize()}ForCausalLM"],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "eos_token_id": 2,
        }
        if self.rope_factor:
            config["rope_scaling"] = {"rope_type": "llama3", "factor": self.rope_factor, **LLAMA3_ROPE}
        return config

    @cached_property
    def tensors(self):
        """Name, shape and standard deviation of each tensor, by Hugging Face's names; no deviation
        where all elements are 1. Projections keep the size of what they project."""
        kv = self.kv_heads * self.head_dim
        linear = lambda name, rows, columns: (f"{name}.weight", (rows, columns), columns ** -0.5)
        bias = lambda name, rows: [(f"{name}.bias", (rows,), 0.1)] if self.biases else []
        found = [("model.embed_tokens.weight", (self.vocabulary, self.hidden), 0.02)]
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            found += [(f"{at}input_layernorm.weight", (self.hidden,), None)]
            for part, rows in (("q", self.hidden), ("k", kv), ("v", kv)):
                found += [linear(f"{at}self_attn.{part}_proj", rows, self.hidden)]
                found += bias(f"{at}self_attn.{part}_proj", rows)
            if self.head_norms:
                found += [(f"{at}self_attn.{part}_norm.weight", (self.head_dim,), None) for part in "qk"]
            found += [
                linear(f"{at}self_attn.o_proj", self.hidden, self.hidden),
                (f"{at}post_attention_layernorm.weight", (self.hidden,), None),
                linear(f"{at}mlp.gate_proj", self.intermediate, self.hidden),
                linear(f"{at}mlp.up_proj", self.intermediate, self.hidden),
                linear(f"{at}mlp.down_proj", self.hidden, self.intermediate),
            ]
        return found + [("model.norm.weight", (self.hidden,), None)]

    @property
    def multiplications_per_token(self):
        """Of a prompt's token in all layers, without attention and without the output layer, of which
        a prompt needs one row."""
        return sum(shape[0] * shape[1] for name, shape, _ in self.tensors
                   if len(shape) == 2 and "embed" not in name)

    @property
    def attention_multiplications(self):
        """Of a token with each token that it attends to, in all layers."""
        return 2 * self.layers * self.hidden


LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

QWEN_05B = Shape("qwen2-0.5b", "qwen2", 896, 24, 14, 2, 4864, 151_936, 32_768, 1e6, 1e-6, biases=True)
LLAMA_1B = Shape("llama-1b", "llama", 2048, 16, 32, 8, 8192, 128_256, 131_072, 5e5, 1e-5, rope_factor=32.0)
LLAMA_8B = Shape("llama-8b", "llama", 4096, 32, 32, 8, 14_336, 128_256, 131_072, 5e5, 1e-5, rope_factor=8.0)
LLAMA_15M = Shape("llama-15m", "llama", 288, 6, 6, 6, 768, 32_000, 2048, 1e4, 1e-5)

SHAPES = {shape.name: shape for shape in (QWEN_05B, LLAMA_1B, LLAMA_8B, LLAMA_15M)}
