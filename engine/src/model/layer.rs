//! The weights of one decoder layer, by their Hugging Face names.

use super::ModelConfig;
use super::linear::Linear;
use super::weights::Weights;
use crate::LoadError;

/// One decoder layer.
pub struct Layer {
    /// RMSNorm before attention: `[hidden_size]`.
    pub attention_norm: Vec<f32>,
    /// To `[heads, head_dim]`.
    pub query: Linear,
    /// To `[kv_heads, head_dim]`.
    pub key: Linear,
    /// To `[kv_heads, head_dim]`.
    pub value: Linear,
    /// From `[heads, head_dim]`.
    pub attention_output: Linear,
    /// RMSNorm of each query head, where the model has it: `[head_dim]`.
    pub query_norm: Option<Vec<f32>>,
    /// RMSNorm of each key head: `[head_dim]`.
    pub key_norm: Option<Vec<f32>>,
    /// RMSNorm before the feed-forward layer: `[hidden_size]`.
    pub mlp_norm: Vec<f32>,
    /// To `[intermediate_size]`.
    pub gate: Linear,
    /// To `[intermediate_size]`.
    pub up: Linear,
    /// From `[intermediate_size]`.
    pub down: Linear,
    /// Tokens that a token sees, itself included; all where absent.
    pub window: Option<usize>,
}

impl Layer {
    /// Layer `index` of a model.
    pub fn load(config: &ModelConfig, weights: &Weights, index: usize) -> Result<Self, LoadError> {
        let ModelConfig { hidden_size, intermediate_size, head_dim, biases, .. } = *config;
        let (query_len, kv_len) = (config.heads * head_dim, config.kv_heads * head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |part: &str, shape, biased| Linear::load(weights, &name(part), shape, biased);
        let norm = |part: &str, len| weights.vector(&format!("{}.weight", name(part)), len);
        let head_norm =
            |part: &str| config.query_key_norm.then(|| norm(part, head_dim)).transpose();
        let (to_kv, to_middle) = ([kv_len, hidden_size], [intermediate_size, hidden_size]);
        let (attention_bias, mlp_bias) = (biases.query_key_value, biases.feed_forward);
        Ok(Self {
            attention_norm: norm("input_layernorm", hidden_size)?,
            query: linear("self_attn.q_proj", [query_len, hidden_size], attention_bias)?,
            key: linear("self_attn.k_proj", to_kv, attention_bias)?,
            value: linear("self_attn.v_proj", to_kv, attention_bias)?,
            attention_output: linear(
                "self_attn.o_proj",
                [hidden_size, query_len],
                biases.attention_output,
            )?,
            query_norm: head_norm("self_attn.q_norm")?,
            key_norm: head_norm("self_attn.k_norm")?,
            mlp_norm: norm("post_attention_layernorm", hidden_size)?,
            gate: linear("mlp.gate_proj", to_middle, mlp_bias)?,
            up: linear("mlp.up_proj", to_middle, mlp_bias)?,
            down: linear("mlp.down_proj", [hidden_size, intermediate_size], mlp_bias)?,
            window: config.windows[index],
        })
    }
}
