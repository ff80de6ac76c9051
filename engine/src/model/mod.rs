//! One decoder, driven by a Hugging Face `config.json` or the metadata of a GGUF file: not a file per
//! family.

mod config;
mod config_json;
mod decoder;
mod family;
mod gguf_config;
mod gguf_names;
mod gguf_weights;
mod layer;
mod linear;
mod numerics;
mod safetensors_files;
mod weights;
mod windows;

use std::path::Path;

pub use config::{ModelConfig, parse_json, read_optional};
pub use decoder::{Decoder, Span};

use crate::{KernelPath, LoadError};
use weights::Weights;

/// A model ready to compute: weights borrowed from mapped files, checked shapes, known numerics.
/// Shared by all workers of a process.
pub struct Model {
    /// What its configuration says.
    pub config: ModelConfig,
    /// The layers.
    pub decoder: Decoder,
    /// Tokens and KV are equal within one id: weights, dtypes, kernels, reduction order.
    pub numerics_id: String,
    /// The part of it that is the same on every machine: weights and configuration.
    pub weights_id: String,
}

impl Model {
    /// Loads a model directory in Hugging Face layout, or a GGUF file. Errors: one sentence for the
    /// user.
    pub fn load(model: &Path, path: KernelPath) -> Result<Self, LoadError> {
        let is_gguf = model.is_file();
        let (config, weights) = match is_gguf {
            true => gguf_weights::open(model)?,
            false => (ModelConfig::load(model)?, Weights::open(model)?),
        };
        let decoder = Decoder::new(&config, &weights)?;
        if is_gguf {
            gguf_weights::check_all_read(model, &weights)?;
        }
        let weights_id = numerics::weights_id(&config, &weights);
        let numerics_id = numerics::id(&weights_id, path);
        Ok(Self { config, decoder, numerics_id, weights_id })
    }
}
