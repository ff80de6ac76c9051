//! The shape of a model, from the metadata of its GGUF file.

use gguf::{Gguf, GgufError, TensorType};

use super::ModelConfig;
use super::config::check_heads;
use super::family::Biases;
use crate::kernels::RopeScaling;

/// The tensor that has what Llama 3.1's rope settings come to.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

const SUPPORTED: &str = "GGUF files of architecture llama (Llama and Mistral), qwen2 and qwen3, \
    without experts, with rope scaling of type none or linear";

/// Reads and checks the metadata. `bytes` are the whole file.
pub fn read(gguf: &Gguf<'_>, bytes: &[u8]) -> Result<ModelConfig, GgufError> {
    let architecture = gguf.text("general.architecture")?;
    let architecture = gguf.required("general.architecture", architecture)?;
    if !["llama", "qwen2", "qwen3"].contains(&architecture) {
        return Err(gguf.unsupported(format!("architecture {architecture}"), SUPPORTED));
    }
    let reader = Reader { gguf, bytes, architecture };
    reader.check_supported()?;
    reader.config()
}

struct Reader<'a> {
    gguf: &'a Gguf<'a>,
    bytes: &'a [u8],
    architecture: &'a str,
}

impl Reader<'_> {
    fn config(&self) -> Result<ModelConfig, GgufError> {
        let gguf = self.gguf;
        let hidden_size = self.size("embedding_length", 1 << 20)?;
        let layers = self.size("block_count", 1 << 12)?;
        let heads = self.size("attention.head_count", 1 << 14)?;
        let kv_heads = match gguf.metadata().get(&self.key("attention.head_count_kv")) {
            Some(_) => self.size("attention.head_count_kv", 1 << 14)?,
            None => heads,
        };
        let head_dim = self.head_dim(hidden_size / heads)?;
        check_heads(heads, kv_heads, head_dim).map_err(|problem| gguf.corrupt(problem))?;
        Ok(ModelConfig {
            hidden_size,
            intermediate_size: self.size("feed_forward_length", 1 << 22)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocabulary_size: self.vocabulary_size()?,
            context_tokens: self.size("context_length", 1 << 28)?,
            rms_norm_epsilon: self.epsilon()?,
            rope_theta: self.positive("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling(head_dim)?,
            windows: self.windows(layers)?,
            biases: self.biases(),
            query_key_norm: self.architecture == "qwen3",
            tied_embeddings: gguf.tensor("output.weight").is_none(),
            eos_token_ids: gguf::tokenizer::end_token_ids(gguf)?,
        })
    }

    /// What other settings of the architectures there are, and nothing here computes.
    fn check_supported(&self) -> Result<(), GgufError> {
        let experts = self.gguf.unsigned(&self.key("expert_count"))?.unwrap_or(0);
        let causal = self.gguf.bool(&self.key("attention.causal"))?.unwrap_or(true);
        let refused = [
            (experts > 0, format!("{experts} experts")),
            (!causal, "attention that is not causal".to_string()),
        ];
        match refused.into_iter().find(|(on, _)| *on) {
            Some((_, what)) => Err(self.unsupported(what)),
            None => Ok(()),
        }
    }

    fn unsupported(&self, what: impl Into<String>) -> GgufError {
        self.gguf.unsupported(what, SUPPORTED)
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A size that must be there: one number, or the same for each layer.
    fn size(&self, name: &str, max: u64) -> Result<usize, GgufError> {
        let key = self.key(name);
        let value = match self.gguf.metadata().get(&key) {
            Some(gguf::Value::Array(_)) => {
                let all = self.gguf.unsigneds(&key)?.unwrap_or_default();
                if all.iter().any(|value| *value != all[0]) {
                    let what = format!("layers of different {key}");
                    return Err(self.unsupported(what));
                }
                all.first().copied()
            }
            _ => self.gguf.unsigned(&key)?,
        };
        let value = self.gguf.required(&key, value)?;
        if value == 0 || value > max {
            return Err(self.gguf.corrupt(format!("{key} is {value}, expected 1 to {max}")));
        }
        Ok(value as usize)
    }

    /// Keys and values must be of one size, and rotate as a whole.
    fn head_dim(&self, default: usize) -> Result<usize, GgufError> {
        let of = |name: &str| self.gguf.unsigned(&self.key(name));
        let key_length = of("attention.key_length")?.unwrap_or(default as u64);
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = of(name)?.filter(|other| *other != key_length) {
                let what = format!("{} {other} with heads of {key_length}", self.key(name));
                return Err(self.unsupported(what));
            }
        }
        match key_length {
            1..=0x4000 => Ok(key_length as usize),
            _ => Err(self.gguf.corrupt(format!("its heads have {key_length} elements"))),
        }
    }

    fn vocabulary_size(&self) -> Result<usize, GgufError> {
        const NAME: &str = "token_embd.weight";
        match self.gguf.tensor(NAME).map(|tensor| &tensor.shape[..]) {
            Some([rows @ 1..=0x400_0000, _]) => Ok(*rows),
            Some(shape) => Err(self.gguf.corrupt(format!("tensor {NAME} has shape {shape:?}"))),
            None => Err(self.gguf.corrupt(format!("tensor {NAME} is missing"))),
        }
    }

    fn epsilon(&self) -> Result<f32, GgufError> {
        let key = self.key("attention.layer_norm_rms_epsilon");
        let epsilon = self.gguf.required(&key, self.gguf.float(&key)?)?;
        match epsilon.is_finite() && epsilon >= 0.0 {
            true => Ok(epsilon),
            false => Err(self.gguf.corrupt(format!("{key} is {epsilon}, expected 0 or more"))),
        }
    }

    fn positive(&self, name: &str) -> Result<Option<f32>, GgufError> {
        let key = self.key(name);
        match self.gguf.float(&key)? {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                Err(self.gguf.corrupt(format!("{key} is {value}, expected a positive number")))
            }
            value => Ok(value),
        }
    }

    fn rope_scaling(&self, head_dim: usize) -> Result<Option<RopeScaling>, GgufError> {
        let kind = self.gguf.text(&self.key("rope.scaling.type"))?;
        let factor = match kind {
            Some("linear") => {
                let factor = self.positive("rope.scaling.factor")?;
                Some(self.gguf.required(&self.key("rope.scaling.factor"), factor)?)
            }
            Some("none") => None,
            Some(other) => {
                return Err(self.unsupported(format!("rope scaling of type {other}")));
            }
            // As files were before there were types.
            None => self.positive("rope.scaling.factor")?.or(self.positive("rope.scale_linear")?),
        };
        let factor = factor.filter(|factor| *factor != 1.0);
        let factors = self.rope_factors(head_dim)?;
        match (factor, factors) {
            (Some(_), Some(_)) => Err(self.unsupported("rope scaling in two ways at once")),
            (factor, factors) => Ok(factors
                .map(RopeScaling::Factors)
                .or(factor.map(|factor| RopeScaling::Linear { factor }))),
        }
    }

    fn rope_factors(&self, head_dim: usize) -> Result<Option<Vec<f32>>, GgufError> {
        let Some(tensor) = self.gguf.tensor(ROPE_FACTORS) else { return Ok(None) };
        let expected = [head_dim / 2];
        if tensor.kind != TensorType::F32 || tensor.shape != expected {
            let (kind, shape) = (tensor.kind, &tensor.shape);
            let problem =
                format!("tensor {ROPE_FACTORS} is {kind} {shape:?}, not F32 {expected:?}");
            return Err(self.gguf.corrupt(problem));
        }
        let numbers = self.bytes[tensor.bytes.clone()].as_chunks().0.iter();
        let factors: Vec<f32> = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match factors.iter().all(|factor| *factor > 0.0 && factor.is_finite()) {
            true => Ok(Some(factors)),
            false => Err(self.gguf.corrupt(format!("tensor {ROPE_FACTORS} has wrong factors"))),
        }
    }

    /// A window holds for all layers, or for those that a pattern names.
    fn windows(&self, layers: usize) -> Result<Vec<Option<usize>>, GgufError> {
        let window = self.gguf.unsigned(&self.key("attention.sliding_window"))?;
        let window = window.filter(|window| *window > 0).map(|window| window as usize);
        let key = self.key("attention.sliding_window_pattern");
        match self.gguf.metadata().get(&key) {
            None => Ok(vec![window; layers]),
            Some(gguf::Value::Array(_)) => {
                let slides = self.gguf.bools(&key)?.unwrap_or_default();
                if slides.len() != layers {
                    let entries = slides.len();
                    let problem = format!("{key} has {entries} entries for {layers} layers");
                    return Err(self.gguf.corrupt(problem));
                }
                Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
            }
            Some(_) => Err(self.unsupported(format!("{key} other than a list"))),
        }
    }

    fn biases(&self) -> Biases {
        let has = |part: &str| self.gguf.tensor(&format!("blk.0.{part}.bias")).is_some();
        Biases {
            query_key_value: has("attn_q"),
            attention_output: has("attn_output"),
            feed_forward: has("ffn_gate"),
        }
    }
}
