//! `config.json`, as transformers 4 and 5 write it, and what its settings mean.

use std::path::Path;

use serde::Deserialize;

use super::ModelConfig;
use super::config::check_heads;
use super::family::Family;
use super::windows::WindowSettings;
use crate::LoadError;
use crate::kernels::RopeScaling;

const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and \
    Qwen3ForCausalLM with silu, with rope of type default, linear or llama3, without quantization";

/// What may be wrong with a configuration.
#[derive(Debug)]
pub enum Problem {
    /// It makes no sense.
    Corrupt(String),
    /// It makes sense, and this engine cannot do it.
    Unsupported(String),
}

impl Problem {
    /// As an error of the file at `path`.
    pub fn at(self, path: &Path) -> LoadError {
        let path = path.into();
        match self {
            Self::Corrupt(problem) => LoadError::Corrupt { path, problem },
            Self::Unsupported(what) => LoadError::Unsupported { path, what, supported: SUPPORTED },
        }
    }
}

/// Parses and checks the text of a `config.json`.
pub fn parse(text: &str) -> Result<ModelConfig, Problem> {
    let corrupt = |error: serde_json::Error| Problem::Corrupt(error.to_string());
    let named: serde_json::Value = serde_json::from_str(text).map_err(corrupt)?;
    // Families of another kind lack our fields: say that they are unsupported, not corrupt.
    let architecture = named["architectures"][0].as_str().unwrap_or("no architecture");
    let family = Family::of(architecture)
        .ok_or_else(|| Problem::Unsupported(format!("architecture {architecture}")))?;
    let raw: RawConfig = serde_json::from_str(text).map_err(corrupt)?;
    raw.check_supported(family)?;
    raw.check_shape(family).map_err(Problem::Corrupt)?;
    raw.into_config(family)
}

#[derive(Deserialize)]
struct RawConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(flatten)]
    windows: WindowSettings,
    quantization_config: Option<serde_json::Value>,
    hidden_act: Option<String>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Clone, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

/// One token id or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// A number.
    One(u32),
    /// A list.
    Many(Vec<u32>),
}

impl TokenIds {
    /// As a list.
    pub fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl RawConfig {
    fn check_supported(&self, family: Family) -> Result<(), Problem> {
        let activation = self.hidden_act.as_deref().unwrap_or("silu");
        if activation != "silu" {
            return Err(Problem::Unsupported(format!("hidden_act {activation}")));
        }
        let rope = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let rotated = rope.and_then(|rope| rope.partial_rotary_factor);
        let rotated = rotated.or(self.partial_rotary_factor).unwrap_or(1.0);
        let refused = [
            ("attention_bias in a Mistral", self.attention_bias && family == Family::Mistral),
            ("mlp_bias in other models than Llama", self.mlp_bias && family != Family::Llama),
            ("partial_rotary_factor", rotated != 1.0),
            ("quantization_config", self.quantization_config.is_some()),
        ];
        match refused.iter().find(|(_, on)| *on) {
            Some((name, _)) => Err(Problem::Unsupported((*name).to_string())),
            None => Ok(()),
        }
    }

    fn check_shape(&self, family: Family) -> Result<(), String> {
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        let head_dim = self.head_dim(family);
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", heads, 1 << 14),
            ("num_key_value_heads", kv_heads, 1 << 14),
            ("head_dim", head_dim, 1 << 14),
            ("vocab_size", self.vocab_size, 1 << 26),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 28),
        ];
        for (name, size, max) in sizes {
            if size == 0 || size > max {
                return Err(format!("{name} is {size}, expected 1 to {max}"));
            }
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(format!("rms_norm_eps is {}, expected 0 or more", self.rms_norm_eps));
        }
        check_heads(heads, kv_heads, head_dim)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self, family: Family) -> usize {
        // The default of Qwen3 is a number, whatever the other sizes are.
        let default = match family {
            Family::Qwen3 => 128,
            _ => self.hidden_size / self.num_attention_heads.max(1),
        };
        self.head_dim.unwrap_or(default)
    }

    fn into_config(self, family: Family) -> Result<ModelConfig, Problem> {
        let (kv_heads, head_dim) = (self.kv_heads(), self.head_dim(family));
        // As transformers does where both are given.
        let rope = self.rope_scaling.or(self.rope_parameters);
        let rope_theta = rope.as_ref().and_then(|rope| rope.rope_theta).or(self.rope_theta);
        Ok(ModelConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads,
            head_dim,
            vocabulary_size: self.vocab_size,
            context_tokens: self.max_position_embeddings,
            rms_norm_epsilon: self.rms_norm_eps,
            rope_theta: positive("rope_theta", rope_theta.unwrap_or(10_000.0))?,
            rope_scaling: rope.map(RawRope::into_scaling).transpose()?.flatten(),
            windows: self.windows.of_layers(family, self.num_hidden_layers)?,
            biases: family.biases(self.attention_bias, self.mlp_bias),
            query_key_norm: family == Family::Qwen3,
            tied_embeddings: self.tie_word_embeddings,
            eos_token_ids: self.eos_token_id.map(TokenIds::into_vec).unwrap_or_default(),
        })
    }
}

impl RawRope {
    fn into_scaling(self) -> Result<Option<RopeScaling>, Problem> {
        let kind = self.rope_type.as_deref().unwrap_or("default");
        let field = |name: &str, value: Option<f32>| {
            let lacks = || Problem::Corrupt(format!("rope scaling of type {kind} lacks {name}"));
            positive(name, value.ok_or_else(lacks)?)
        };
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: field("factor", self.factor)? })),
            "llama3" => {
                let low_freq_factor = field("low_freq_factor", self.low_freq_factor)?;
                let high_freq_factor = field("high_freq_factor", self.high_freq_factor)?;
                if low_freq_factor >= high_freq_factor {
                    let problem = "low_freq_factor is not below high_freq_factor".into();
                    return Err(Problem::Corrupt(problem));
                }
                Ok(Some(RopeScaling::Llama3 {
                    factor: field("factor", self.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_context_tokens: field(
                        "original_max_position_embeddings",
                        self.original_max_position_embeddings,
                    )?,
                }))
            }
            other => Err(Problem::Unsupported(format!("rope scaling of type {other}"))),
        }
    }
}

fn positive(name: &str, value: f32) -> Result<f32, Problem> {
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(Problem::Corrupt(format!("{name} is {value}, expected a positive number"))),
    }
}
