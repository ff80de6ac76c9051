//! What the supported families differ in, beyond what their `config.json` says.

/// A family of models that the decoder covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
}

/// Which linear layers add a bias to their product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// The output of attention.
    pub attention_output: bool,
    /// The three of the feed-forward layer.
    pub feed_forward: bool,
}

impl Family {
    /// The family of an entry of `architectures`.
    pub fn of(architecture: &str) -> Option<Self> {
        match architecture {
            "LlamaForCausalLM" => Some(Self::Llama),
            "MistralForCausalLM" => Some(Self::Mistral),
            "Qwen2ForCausalLM" => Some(Self::Qwen2),
            "Qwen3ForCausalLM" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// Its biases, under the settings of the same names.
    pub fn biases(self, attention_bias: bool, mlp_bias: bool) -> Biases {
        match self {
            Self::Llama | Self::Qwen3 => Biases {
                query_key_value: attention_bias,
                attention_output: attention_bias,
                feed_forward: mlp_bias,
            },
            Self::Mistral => Biases::default(),
            Self::Qwen2 => Biases { query_key_value: true, ..Biases::default() },
        }
    }
}
