//! `config.json`, as transformers 4 and 5 write it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::LoadError;
use crate::kernels::RopeScaling;

const SUPPORTED: &str =
    "LlamaForCausalLM and Qwen3ForCausalLM with silu, without biases, windows or quantization";

/// The shape of a decoder and how it computes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocabulary_size: usize,
    /// Longest context the model was made for.
    pub context_tokens: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Llama 3's frequency scaling.
    pub rope_scaling: Option<RopeScaling>,
    /// RMSNorm of each query and key head (Qwen3).
    pub query_key_norm: bool,
    /// The output layer is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
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
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    quantization_config: Option<serde_json::Value>,
    hidden_act: Option<String>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Clone, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

impl ModelConfig {
    /// Reads and checks `config.json`, and `generation_config.json` where there is one.
    pub fn load(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join("config.json");
        let advice = "MODEL must be a model directory in Hugging Face layout \
            (config.json, tokenizer.json, *.safetensors)";
        let text = std::fs::read_to_string(&path).map_err(|source| LoadError::Unreadable {
            path: path.clone(),
            source,
            advice,
        })?;
        let mut config = Self::parse(&text, &path)?;
        if let Some(ids) = eos_of_generation_config(directory)? {
            config.eos_token_ids = ids;
        }
        Ok(config)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, LoadError> {
        let corrupt = |problem: String| LoadError::Corrupt { path: path.into(), problem };
        let named: serde_json::Value =
            serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))?;
        // Families of another kind lack our fields: say that they are unsupported, not corrupt.
        let architecture = named["architectures"][0].as_str().unwrap_or("no architecture");
        if !["LlamaForCausalLM", "Qwen3ForCausalLM"].contains(&architecture) {
            return Err(unsupported(path, format!("architecture {architecture}")));
        }
        let raw: RawConfig =
            serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))?;
        raw.check_supported(path)?;
        let config = raw.into_config(path)?;
        config.check_shape().map_err(corrupt)?;
        Ok(config)
    }

    fn check_shape(&self) -> Result<(), String> {
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.layers, 1 << 12),
            ("num_attention_heads", self.heads, 1 << 14),
            ("num_key_value_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("vocab_size", self.vocabulary_size, 1 << 26),
            ("max_position_embeddings", self.context_tokens, 1 << 28),
        ];
        for (name, size, max) in sizes {
            if size == 0 || size > max {
                return Err(format!("{name} is {size}, expected 1 to {max}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!("{heads} attention heads do not divide over {kv_heads} KV heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim is {}, expected an even number", self.head_dim));
        }
        Ok(())
    }
}

impl RawConfig {
    fn check_supported(&self, path: &Path) -> Result<(), LoadError> {
        let activation = self.hidden_act.as_deref().unwrap_or("silu");
        if activation != "silu" {
            return Err(unsupported(path, format!("hidden_act {activation}")));
        }
        let refused = [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("use_sliding_window", self.use_sliding_window),
            ("quantization_config", self.quantization_config.is_some()),
        ];
        match refused.iter().find(|(_, on)| *on) {
            Some((name, _)) => Err(unsupported(path, (*name).to_string())),
            None => Ok(()),
        }
    }

    fn into_config(self, path: &Path) -> Result<ModelConfig, LoadError> {
        let architecture = self.architectures.unwrap_or_default().into_iter().next();
        let rope = self.rope_parameters.or(self.rope_scaling);
        let rope_theta = rope.as_ref().and_then(|rope| rope.rope_theta).or(self.rope_theta);
        Ok(ModelConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1)),
            vocabulary_size: self.vocab_size,
            context_tokens: self.max_position_embeddings,
            rms_norm_epsilon: self.rms_norm_eps,
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rope_scaling: rope.map(|rope| rope.into_scaling(path)).transpose()?.flatten(),
            query_key_norm: architecture.as_deref() == Some("Qwen3ForCausalLM"),
            tied_embeddings: self.tie_word_embeddings,
            eos_token_ids: self.eos_token_id.map(TokenIds::into_vec).unwrap_or_default(),
        })
    }
}

impl RawRope {
    fn into_scaling(self, path: &Path) -> Result<Option<RopeScaling>, LoadError> {
        let kind = self.rope_type.as_deref().unwrap_or("default");
        if kind == "default" {
            return Ok(None);
        }
        if kind != "llama3" {
            return Err(unsupported(path, format!("rope scaling of type {kind}")));
        }
        let field = |value: Option<f32>, name: &str| {
            value.ok_or_else(|| LoadError::Corrupt {
                path: path.into(),
                problem: format!("rope scaling of type llama3 lacks {name}"),
            })
        };
        Ok(Some(RopeScaling {
            factor: field(self.factor, "factor")?,
            low_freq_factor: field(self.low_freq_factor, "low_freq_factor")?,
            high_freq_factor: field(self.high_freq_factor, "high_freq_factor")?,
            original_context_tokens: field(
                self.original_max_position_embeddings,
                "original_max_position_embeddings",
            )?,
        }))
    }
}

fn eos_of_generation_config(directory: &Path) -> Result<Option<Vec<u32>>, LoadError> {
    let path: PathBuf = directory.join("generation_config.json");
    let Some(text) = read_optional(&path)? else { return Ok(None) };
    let parsed: GenerationConfig = serde_json::from_str(&text)
        .map_err(|error| LoadError::Corrupt { path, problem: error.to_string() })?;
    Ok(parsed.eos_token_id.map(TokenIds::into_vec))
}

/// The text of a file that need not be there. Errors: it is there and cannot be read.
pub fn read_optional(path: &Path) -> Result<Option<String>, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let advice = "make the file readable, or remove it";
            Err(LoadError::Unreadable { path: path.into(), source, advice })
        }
    }
}

fn unsupported(path: &Path, what: String) -> LoadError {
    LoadError::Unsupported { path: path.into(), what, supported: SUPPORTED }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "eos_token_id": [1, 2]}"#;

    fn parse(text: &str) -> Result<ModelConfig, String> {
        ModelConfig::parse(text, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_both_styles_of_rope_settings() {
        let scaling = r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}"#;
        let old = LLAMA.replacen('{', &format!(r#"{{"rope_scaling": {scaling},"#), 1);
        let inner = scaling.replacen('{', r#"{"rope_theta": 500000.0,"#, 1);
        let new = LLAMA
            .replacen('{', &format!(r#"{{"rope_parameters": {inner},"#), 1)
            .replace(r#""rope_theta": 500000.0, "eos"#, r#""eos"#);
        let (old, new) = (parse(&old).unwrap(), parse(&new).unwrap());
        assert_eq!(old, new);
        assert_eq!(old.rope_theta, 500_000.0);
        assert_eq!(old.rope_scaling.unwrap().factor, 8.0);
        assert_eq!(old.eos_token_ids, [1, 2]);
        assert_eq!(old.head_dim, 16);
    }

    #[test]
    fn refuses_with_a_sentence() {
        let check = |from: &str, to: &str, expected: &str| {
            let error = parse(&LLAMA.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("LlamaForCausalLM", "MambaForCausalLM", "architecture MambaForCausalLM");
        check("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "do not divide");
        check("\"vocab_size\": 100", "\"vocab_size\": 0", "vocab_size is 0");
        check("\"hidden_size\": 64,", "", "missing field `hidden_size`");
        check("{", "{\"attention_bias\": true,", "asks for attention_bias");
        check("{", "{\"rope_scaling\": {\"rope_type\": \"yarn\"},", "rope scaling of type yarn");
        check("{", "{\"rope_scaling\": {\"type\": \"llama3\"},", "lacks factor");
        check("LlamaForCausalLM\"]", "", "config.json is not usable");
    }
}
