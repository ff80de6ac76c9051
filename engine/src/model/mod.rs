//! One decoder, driven by a Hugging Face `config.json`: not a file per family.

mod config;
mod config_json;
mod decoder;
mod family;
mod layer;
mod linear;
mod numerics;
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
    /// What `config.json` says.
    pub config: ModelConfig,
    /// The layers.
    pub decoder: Decoder,
    /// Tokens and KV are equal within one id: weights, dtypes, kernels, reduction order.
    pub numerics_id: String,
    /// The part of it that is the same on every machine: weights and configuration.
    pub weights_id: String,
}

impl Model {
    /// Loads a model directory in Hugging Face layout. Errors: one sentence for the user.
    pub fn load(directory: &Path, path: KernelPath) -> Result<Self, LoadError> {
        let config = ModelConfig::load(directory)?;
        let weights = Weights::open(directory)?;
        let decoder = Decoder::new(&config, &weights)?;
        let weights_id = numerics::weights_id(&config, &weights);
        let numerics_id = numerics::id(&weights_id, path);
        Ok(Self { config, decoder, numerics_id, weights_id })
    }
}
