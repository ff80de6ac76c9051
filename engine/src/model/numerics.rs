//! The numerics id: workers with one id compute the same bits.

use super::ModelConfig;
use super::weights::Weights;
use crate::KernelPath;
use crate::kernels::REDUCTION_ORDER;

const SAMPLES: usize = 256;
const SAMPLE_BYTES: usize = 4096;

/// Tokens and KV are equal within one id: what is computed, by which kernels, in which order.
pub fn id(weights_id: &str, path: KernelPath) -> String {
    format!("{weights_id}-{path}-r{REDUCTION_ORDER}")
}

/// Hashes what is computed: configuration and weights. Weights are sampled (length, first bytes
/// with the header, and evenly spread pages), because hashing many gigabytes would delay each
/// start; two checkpoints that agree in all samples and differ elsewhere would be told apart by
/// nothing else here.
pub fn weights_id(config: &ModelConfig, weights: &Weights) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{config:?}").as_bytes());
    for file in &weights.files {
        hasher.update(&(file.len() as u64).to_le_bytes());
        let stride = (file.len() / SAMPLES).max(SAMPLE_BYTES);
        for start in (0..file.len()).step_by(stride) {
            hasher.update(&file[start..file.len().min(start + SAMPLE_BYTES)]);
        }
    }
    hasher.finalize().to_hex()[..16].to_string()
}
