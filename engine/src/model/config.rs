//! The shape of a model, from its directory.

use std::path::{Path, PathBuf};

use kv_transfer::KvLayout;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config_json::{TokenIds, parse};
use super::family::Biases;
use crate::LoadError;
use crate::kernels::RopeScaling;

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
    /// How the frequencies are stretched to a longer context.
    pub rope_scaling: Option<RopeScaling>,
    /// Of each layer: how many tokens a token sees, itself included; all where absent.
    pub windows: Vec<Option<usize>>,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// RMSNorm of each query and key head (Qwen3).
    pub query_key_norm: bool,
    /// The output layer is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

impl ModelConfig {
    /// The layout of KV blocks whose numbers have so many bytes.
    pub(crate) fn kv_layout(
        &self,
        numerics_id: &str,
        block_size: usize,
        element_bytes: usize,
    ) -> KvLayout {
        KvLayout {
            numerics_id: numerics_id.to_string(),
            block_size,
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            element_bytes,
        }
    }

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
        let mut config = parse(&text).map_err(|problem| problem.at(&path))?;
        if let Some(ids) = eos_of_generation_config(directory)? {
            config.eos_token_ids = ids;
        }
        Ok(config)
    }
}

/// What must be true of heads, whatever the file. Errors: what is not.
pub fn check_heads(heads: usize, kv_heads: usize, head_dim: usize) -> Result<(), String> {
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} attention heads do not divide over {kv_heads} KV heads"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("head_dim is {head_dim}, expected an even number"));
    }
    Ok(())
}

fn eos_of_generation_config(directory: &Path) -> Result<Option<Vec<u32>>, LoadError> {
    let path: PathBuf = directory.join("generation_config.json");
    let Some(text) = read_optional(&path)? else { return Ok(None) };
    let parsed: GenerationConfig = parse_json(&path, &text)?;
    Ok(parsed.eos_token_id.map(TokenIds::into_vec))
}

/// Reads the JSON text of a file. Errors: it is not JSON, or of another shape.
pub fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, LoadError> {
    let corrupt = |error: serde_json::Error| LoadError::Corrupt {
        path: path.into(),
        problem: error.to_string(),
    };
    serde_json::from_str(text).map_err(corrupt)
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

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "eos_token_id": [1, 2]}"#;

    fn parse(text: &str) -> Result<ModelConfig, String> {
        super::parse(text).map_err(|problem| problem.at(Path::new("config.json")).to_string())
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
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_tokens: 64.0,
        };
        assert_eq!(old.rope_scaling, Some(expected));
        assert_eq!(old.eos_token_ids, [1, 2]);
        assert_eq!(old.head_dim, 16);
    }

    /// The parsed `LLAMA` as another architecture, with more settings.
    fn with(architecture: &str, settings: &str) -> Result<ModelConfig, String> {
        let text = LLAMA.replace("LlamaForCausalLM", architecture);
        parse(&text.replacen('{', &format!("{{{settings}"), 1))
    }

    #[test]
    fn windows_are_those_of_transformers() {
        let check = |architecture: &str, settings: &str, expected: [Option<usize>; 2]| {
            let found = with(architecture, settings).unwrap().windows;
            assert_eq!(found, expected, "{architecture} with {settings}");
        };
        let on = r#""use_sliding_window": true, "sliding_window": 40,"#;
        let second = &format!(r#"{on} "max_window_layers": 1,"#);
        let listed =
            &format!(r#"{second} "layer_types": ["sliding_attention", "full_attention"],"#);
        check("LlamaForCausalLM", "", [None, None]);
        check("LlamaForCausalLM", r#""sliding_window": 40,"#, [None, None]);
        check("MistralForCausalLM", "", [Some(4096), Some(4096)]);
        check("MistralForCausalLM", r#""sliding_window": null,"#, [None, None]);
        check("MistralForCausalLM", r#""sliding_window": 40,"#, [Some(40), Some(40)]);
        for architecture in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
            check(architecture, r#""sliding_window": 40, "max_window_layers": 0,"#, [None, None]);
            check(architecture, on, [None, None]);
            check(architecture, second, [None, Some(40)]);
            check(architecture, listed, [Some(40), None]);
        }
    }

    #[test]
    fn biases_are_those_of_transformers() {
        let check = |architecture: &str, settings: &str, expected: [bool; 3]| {
            let found = with(architecture, settings).unwrap().biases;
            let found = [found.query_key_value, found.attention_output, found.feed_forward];
            assert_eq!(found, expected, "{architecture} with {settings}");
        };
        check("LlamaForCausalLM", "", [false, false, false]);
        check("LlamaForCausalLM", r#""attention_bias": true,"#, [true, true, false]);
        check("LlamaForCausalLM", r#""mlp_bias": true,"#, [false, false, true]);
        check("MistralForCausalLM", "", [false, false, false]);
        check("Qwen2ForCausalLM", "", [true, false, false]);
        check("Qwen3ForCausalLM", "", [false, false, false]);
        check("Qwen3ForCausalLM", r#""attention_bias": true,"#, [true, true, false]);
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
        check("1e-5", "-1", "rms_norm_eps is -1");
        check("\"hidden_size\": 64,", "", "missing field `hidden_size`");
        check("{", "{\"rope_scaling\": {\"rope_type\": \"yarn\"},", "rope scaling of type yarn");
        check("{", "{\"rope_scaling\": {\"type\": \"llama3\"},", "lacks low_freq_factor");
        let equal = r#"{"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4,
            "high_freq_factor": 4, "original_max_position_embeddings": 64},"#;
        check("{", equal, "low_freq_factor is not below");
        check("500000.0", "-1", "rope_theta is -1");
        check("LlamaForCausalLM\"]", "", "config.json is not usable");
    }
    #[test]
    fn refuses_settings_of_a_family_with_a_sentence() {
        let check = |architecture: &str, settings: &str, expected: &str| {
            let error = with(architecture, settings).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let qwen = "Qwen2ForCausalLM";
        let on = r#""use_sliding_window": true,"#;
        let list = |types: &str| format!(r#"{on} "layer_types": [{types}],"#);
        check("LlamaForCausalLM", on, "use_sliding_window in a Llama");
        check("MistralForCausalLM", r#""attention_bias": true,"#, "attention_bias in a Mistral");
        check(qwen, r#""mlp_bias": true,"#, "asks for mlp_bias");
        check(qwen, r#""partial_rotary_factor": 0.5,"#, "asks for partial_rotary_factor");
        check(qwen, r#""rope_scaling": {"type": "linear"},"#, "type linear lacks factor");
        check(qwen, r#""rope_scaling": {"type": "linear", "factor": 0},"#, "factor is 0");
        check(qwen, &format!(r#"{on} "sliding_window": 0,"#), "sliding_window is 0");
        check("MistralForCausalLM", r#""sliding_window": -1,"#, "config.json is not usable");
        check(qwen, &list(r#""full_attention""#), "layer_types has 1 entries for 2 layers");
        check(qwen, &list(r#""full_attention", "linear""#), "asks for layer type linear");
        let sliding = r#""layer_types": ["full_attention", "sliding_attention"],"#;
        check(qwen, sliding, "layer_types has sliding_attention, and no window is set");
        check("MistralForCausalLM", sliding, "layers of different types in a Mistral");
    }
}
