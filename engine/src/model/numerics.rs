//! The numerics id: workers with one id compute the same bits.

use super::ModelConfig;
use super::weights::Weights;
use crate::KernelPath;
use crate::kernels::REDUCTION_ORDER;

const SAMPLES: usize = 256;
const SAMPLE_BYTES: usize = 4096;

/// Hashes what decides over bits: configuration, weights, kernel path, reduction order. Weights
/// are sampled (length, first bytes with the header, and evenly spread pages), because hashing
/// many gigabytes would delay each start; two checkpoints that agree in all samples and differ
/// elsewhere would be told apart by nothing else here.
pub fn id(config: &ModelConfig, weights: &Weights, path: KernelPath) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{config:?} {path} {REDUCTION_ORDER}").as_bytes());
    for file in &weights.files {
        hasher.update(&(file.len() as u64).to_le_bytes());
        let stride = (file.len() / SAMPLES).max(SAMPLE_BYTES);
        for start in (0..file.len()).step_by(stride) {
            hasher.update(&file[start..file.len().min(start + SAMPLE_BYTES)]);
        }
    }
    format!("{}-{path}-r{REDUCTION_ORDER}", &hasher.finalize().to_hex()[..16])
}
