//! One decoder, driven by a Hugging Face `config.json` or the metadata of a GGUF file: not a file per
//! family.

mod config;
mod config_json;
mod decoder;
mod family;
mod gguf_config;
mod gguf_names;
mod gguf_weights;
mod int8;
mod layer;
mod linear;
mod numerics;
mod safetensors_files;
mod weights;
mod windows;

use std::path::Path;

pub use config::{ModelConfig, parse_json, read_optional};
pub use decoder::{Decoder, Span};
pub use int8::Int8Cache;
pub use layer::Layer;
pub use linear::Linear;
pub use weights::WeightMatrix;

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
        Self::load_with(model, path, None)
    }

    /// The same, with 8-bit weights in place of wider ones.
    pub fn load_in_int8(
        model: &Path,
        path: KernelPath,
        cache: &Int8Cache<'_>,
    ) -> Result<Self, LoadError> {
        Self::load_with(model, path, Some(cache))
    }

    fn load_with(
        model: &Path,
        path: KernelPath,
        int8: Option<&Int8Cache<'_>>,
    ) -> Result<Self, LoadError> {
        let is_gguf = model.is_file();
        let (config, mut weights) = match is_gguf {
            true => gguf_weights::open(model)?,
            false => (ModelConfig::load(model)?, Weights::open(model)?),
        };
        let mut weights_id = numerics::weights_id(&config, &weights);
        if let Some(cache) = int8 {
            int8::round(&mut weights, &weights_id, model, cache)?;
            weights_id = int8::id(&weights_id);
        }
        let decoder = Decoder::new(&config, &weights)?;
        if is_gguf {
            gguf_weights::check_all_read(model, &weights)?;
        }
        let numerics_id = numerics::id(&weights_id, path);
        Ok(Self { config, decoder, numerics_id, weights_id })
    }
}
