//! A model in a GGUF file: its tensors stay where they are mapped.

use std::path::Path;
use std::sync::Arc;

use gguf::{Gguf, TensorType};

use super::gguf_config::{self, ROPE_FACTORS};
use super::weights::{StoredTensor, StoredType, Weights};
use super::{ModelConfig, gguf_names};
use crate::LoadError;
use crate::kernels::{QuantFormat, RopePairing};

const TENSORS: &str = "the tensors of Llama, Mistral, Qwen2 and Qwen3";

/// Maps and checks a file. Errors: one sentence for the user.
pub fn open(path: &Path) -> Result<(ModelConfig, Weights), LoadError> {
    let file = Arc::new(gguf::map(path)?);
    let gguf = Gguf::parse(&file, path)?;
    let config = gguf_config::read(&gguf, &file)?;
    // Files of Llamas have the rows of queries and keys in another order.
    let pairing = match gguf.text("general.architecture")? {
        Some("llama") => RopePairing::Neighbours,
        _ => RopePairing::Halves,
    };
    let mut weights = Weights::new(path, pairing, gguf_names::of_gguf);
    for tensor in gguf.tensors.iter().filter(|tensor| tensor.name != ROPE_FACTORS) {
        let name = gguf_names::of_hugging_face(tensor.name)
            .ok_or_else(|| gguf.unsupported(format!("tensor {}", tensor.name), TENSORS))?;
        let stored = StoredTensor {
            file: file.clone(),
            bytes: tensor.bytes.clone(),
            shape: tensor.shape.clone(),
            kind: stored_type(tensor.kind),
        };
        weights.insert(name, stored);
    }
    weights.files.push(file.clone());
    Ok((config, weights))
}

/// A tensor that nothing reads would be a model that is not computed as it was made.
pub fn check_all_read(path: &Path, weights: &Weights) -> Result<(), LoadError> {
    match weights.unread() {
        None => Ok(()),
        Some(name) => {
            let what = format!("tensor {name}");
            Err(LoadError::Unsupported { path: path.into(), what, supported: TENSORS })
        }
    }
}

fn stored_type(kind: TensorType) -> StoredType {
    match kind {
        TensorType::F32 => StoredType::F32,
        TensorType::F16 => StoredType::F16,
        TensorType::BF16 => StoredType::Bf16,
        other => {
            let name = other.to_string();
            let quantized = QuantFormat::ALL.into_iter().find(|format| format.to_string() == name);
            quantized.map_or(StoredType::Other(name), StoredType::Quantized)
        }
    }
}
