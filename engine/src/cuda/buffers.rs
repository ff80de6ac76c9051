//! What steps compute in: one allocation, large enough for the largest step.

use std::sync::Arc;

use cuda_driver::{Allocation, Device};
use cuda_kernels::{KernelShape, PART_TOKENS, Partials};

use super::CudaFailure;
use super::step::StepShape;
use crate::model::ModelConfig;

/// Rows whose logits are computed at once.
pub const LOGIT_ROWS: usize = 256;
/// Rows of products come in such multiples where shapes are fixed, and behind the last ones is room
/// for as many.
pub const PRODUCT_ROWS: usize = 64;
/// Rows times parts of contexts that attend in one launch.
const PARTIALS_MAX: usize = 4096;
const ALIGNMENT: usize = 256;

/// Addresses of what a step computes in between. ACT is what the kernels' activations are.
pub struct Buffers {
    /// f32 `[rows, hidden_size]`: the residual stream.
    pub x: u64,
    /// ACT `[rows, hidden_size]`
    pub normed: u64,
    /// ACT `[rows, heads + 2 kv_heads, head_dim]`
    pub projected: u64,
    /// f32 `[rows, head_dim]`
    pub angles: u64,
    /// f32 `[rows, heads, head_dim]`
    pub queries: u64,
    /// ACT `[rows, heads, head_dim]`
    pub attended: u64,
    /// ACT `[rows, hidden_size]`
    pub delta: u64,
    /// ACT `[rows, 2, intermediate_size]`
    pub gate_up: u64,
    /// ACT `[rows, intermediate_size]`
    pub inner: u64,
    /// What rows that see several parts leave.
    pub partials: Partials,
    /// ACT `[wanted, hidden_size]`
    pub wanted: u64,
    /// ACT `[LOGIT_ROWS, vocabulary_size]`
    pub logits: u64,
    /// u32 `[LOGIT_ROWS]`
    pub chosen: u64,
    /// ACT of the largest matrix, where weights are coded.
    pub widened: u64,
    /// A step's numbers.
    pub inputs: u64,
    /// Bytes of `inputs`.
    pub inputs_bytes: usize,
    /// Rows that there is room for.
    pub rows: usize,
    _memory: Allocation,
}

/// How large the largest step is.
#[derive(Clone, Copy, Debug)]
pub struct StepSizes {
    /// Rows.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of the longest context.
    pub context_tokens: usize,
}

impl Buffers {
    /// Allocates them. `widened_elements` are those of the largest coded matrix. Errors: they do not
    /// fit.
    pub fn new(
        device: &Arc<Device>,
        config: &ModelConfig,
        kernels: &KernelShape,
        sizes: &StepSizes,
        widened_elements: usize,
    ) -> Result<Self, CudaFailure> {
        let ModelConfig { hidden_size, intermediate_size, head_dim, heads, kv_heads, .. } = *config;
        let rows = sizes.rows.next_multiple_of(PRODUCT_ROWS);
        let act = kernels.activations.bytes();
        let (values_bytes, stats_bytes) =
            Partials::bytes(kernels, 1, PARTIALS_MAX.max(parts(sizes)));
        let inputs_bytes = largest_inputs(sizes, kernels.block_size);
        let mut end = 0;
        let mut place = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at as u64
        };
        let mut buffers = [
            place(rows * hidden_size * 4),
            place(rows * hidden_size * act),
            place(rows * (heads + 2 * kv_heads) * head_dim * act),
            place(rows * head_dim * 4),
            place(rows * heads * head_dim * 4),
            place(rows * heads * head_dim * act),
            place(rows * hidden_size * act),
            place(rows * 2 * intermediate_size * act),
            place(rows * intermediate_size * act),
            place(values_bytes),
            place(stats_bytes),
            place(rows * hidden_size * act),
            place(LOGIT_ROWS * config.vocabulary_size * act),
            place(LOGIT_ROWS * 4),
            place(widened_elements * act),
            place(inputs_bytes),
        ];
        let memory = Allocation::new(device, end)?;
        buffers.iter_mut().for_each(|at| *at += memory.address());
        let [
            x,
            normed,
            projected,
            angles,
            queries,
            attended,
            delta,
            gate_up,
            inner,
            values,
            stats,
            wanted,
            logits,
            chosen,
            widened,
            inputs,
        ] = buffers;
        Ok(Self {
            x,
            normed,
            projected,
            angles,
            queries,
            attended,
            delta,
            gate_up,
            inner,
            partials: Partials { values, stats },
            wanted,
            logits,
            chosen,
            widened,
            inputs,
            inputs_bytes,
            rows,
            _memory: memory,
        })
    }

    /// Rows that attend in one launch, where contexts have so many parts.
    pub fn attending_rows(parts: usize) -> usize {
        (PARTIALS_MAX / parts.max(1)).max(1)
    }
}

/// Of the longest context, as steps round it up.
fn parts(sizes: &StepSizes) -> usize {
    sizes.context_tokens.next_power_of_two().div_ceil(PART_TOKENS).max(2)
}

/// Bytes of the largest step's numbers.
fn largest_inputs(sizes: &StepSizes, block_size: usize) -> usize {
    let rows = sizes.rows.next_multiple_of(PRODUCT_ROWS);
    let shape = StepShape {
        rows,
        single_rows: rows,
        tiles: rows,
        sequences: sizes.sequences.next_multiple_of(PRODUCT_ROWS),
        context_tokens: parts(sizes) * PART_TOKENS,
        wanted: rows,
        wants_all: true,
    };
    shape.offsets(block_size).bytes
}
