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

/// Where each part of the buffers begins, in bytes.
pub struct Places {
    x: u64,
    normed: u64,
    projected: u64,
    angles: u64,
    queries: u64,
    attended: u64,
    delta: u64,
    gate_up: u64,
    inner: u64,
    values: u64,
    stats: u64,
    wanted: u64,
    logits: u64,
    chosen: u64,
    widened: u64,
    inputs: u64,
    inputs_bytes: usize,
    /// Of all.
    pub bytes: usize,
}

impl Places {
    /// For steps of these sizes. `widened_elements` are those of the largest coded matrix.
    pub fn new(
        config: &ModelConfig,
        kernels: &KernelShape,
        sizes: &StepSizes,
        widened_elements: usize,
    ) -> Self {
        let ModelConfig { hidden_size, intermediate_size, head_dim, heads, kv_heads, .. } = *config;
        let rows = sizes.rows.next_multiple_of(PRODUCT_ROWS);
        let (act, wide) = (kernels.activations.bytes(), size_of::<f32>());
        let (values_bytes, stats_bytes) =
            Partials::bytes(kernels, 1, PARTIALS_MAX.max(parts(sizes)));
        let inputs_bytes = largest_inputs(sizes, kernels.block_size);
        let mut end = 0;
        let mut place = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at as u64
        };
        let mut places = Self {
            x: place(rows * hidden_size * wide),
            normed: place(rows * hidden_size * act),
            projected: place(rows * (heads + 2 * kv_heads) * head_dim * act),
            angles: place(rows * head_dim * wide),
            queries: place(rows * heads * head_dim * wide),
            attended: place(rows * heads * head_dim * act),
            delta: place(rows * hidden_size * act),
            gate_up: place(rows * 2 * intermediate_size * act),
            inner: place(rows * intermediate_size * act),
            values: place(values_bytes),
            stats: place(stats_bytes),
            wanted: place(rows * hidden_size * act),
            logits: place(LOGIT_ROWS * config.vocabulary_size * act),
            chosen: place(LOGIT_ROWS * size_of::<u32>()),
            widened: place(widened_elements * act),
            inputs: place(inputs_bytes),
            inputs_bytes,
            bytes: 0,
        };
        places.bytes = end;
        places
    }
}

impl Buffers {
    /// Allocates them. Errors: they do not fit.
    pub fn new(device: &Arc<Device>, places: &Places) -> Result<Self, CudaFailure> {
        let memory = Allocation::new(device, places.bytes)?;
        let at = |place: u64| memory.address() + place;
        Ok(Self {
            x: at(places.x),
            normed: at(places.normed),
            projected: at(places.projected),
            angles: at(places.angles),
            queries: at(places.queries),
            attended: at(places.attended),
            delta: at(places.delta),
            gate_up: at(places.gate_up),
            inner: at(places.inner),
            partials: Partials { values: at(places.values), stats: at(places.stats) },
            wanted: at(places.wanted),
            logits: at(places.logits),
            chosen: at(places.chosen),
            widened: at(places.widened),
            inputs: at(places.inputs),
            inputs_bytes: places.inputs_bytes,
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
