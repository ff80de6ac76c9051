//! Causal attention over paged KV. Each (token, query head) walks its context in position order,
//! alone, reading keys and values as they are stored: the result does not depend on how the
//! context was chunked, batched or split over threads.

use kv_transfer::{HostMemory, KvLayout};
use multiversion::multiversion;

use super::math::{dot, exp, sum_of};
use super::{Compute, Element};

/// The shape that all query rows of a batch share.
pub struct AttentionShape<'a> {
    /// Layout of the KV blocks.
    pub layout: &'a KvLayout,
    /// Which layer's planes to read.
    pub layer: usize,
    /// Query heads; a multiple of the layout's KV heads.
    pub heads: usize,
}

/// One token that attends.
#[derive(Clone, Copy)]
pub struct QueryRow<'a> {
    /// The blocks of its sequence, in order.
    pub blocks: &'a [u32],
    /// It sees positions `0..context_tokens`, itself included.
    pub context_tokens: usize,
}

/// Attends with each row of `queries` (`[rows, heads, head_dim]`) into `out` (same shape). Keys
/// and values of all positions in each row's context must already be in the pool.
pub fn attend<E: Element>(
    compute: &Compute,
    shape: &AttentionShape<'_>,
    memory: &HostMemory,
    rows: &[QueryRow<'_>],
    queries: &[f32],
    out: &mut [f32],
) {
    let row_len = shape.heads * shape.layout.head_dim;
    let work: usize = rows.iter().map(|row| 2 * row.context_tokens * row_len).sum();
    let out = SharedRows { base: out.as_mut_ptr(), row_len };
    // Rows late in a prompt see more than early ones: finer pieces than one per thread.
    let pieces = if work < 1 << 20 { 1 } else { rows.len().min(32) };
    let piece = rows.len().div_ceil(pieces).max(1);
    let attend_piece = |start: usize| {
        let mut scores = Vec::new();
        for index in start..rows.len().min(start + piece) {
            let query = &queries[index * row_len..][..row_len];
            // SAFETY: each row belongs to one piece.
            let out = unsafe { out.row(index) };
            attend_row::<E>(shape, memory, rows[index], query, &mut scores, out);
        }
    };
    if pieces == 1 {
        return attend_piece(0);
    }
    compute.split_dynamic((0..rows.len()).step_by(piece), attend_piece);
}

struct SharedRows {
    base: *mut f32,
    row_len: usize,
}

// SAFETY: threads take disjoint rows (see `row`).
unsafe impl Sync for SharedRows {}

impl SharedRows {
    /// # Safety
    /// The row is in bounds, and no other thread takes it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, index: usize) -> &mut [f32] {
        // SAFETY: in bounds and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(index * self.row_len), self.row_len) }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
fn attend_row<E: Element>(
    shape: &AttentionShape<'_>,
    memory: &HostMemory,
    row: QueryRow<'_>,
    query: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let layout = shape.layout;
    let (head_dim, group) = (layout.head_dim, shape.heads / layout.kv_heads);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let (keys_at, values_at) = (layout.keys_offset(shape.layer), layout.values_offset(shape.layer));
    for head in 0..shape.heads {
        let query = &query[head * head_dim..][..head_dim];
        let out = &mut out[head * head_dim..][..head_dim];
        scores.clear();
        for_each_block(row, layout.block_size, |block, tokens| {
            let keys = head_plane::<E>(memory, layout, block, keys_at, head / group);
            let keys = keys.chunks_exact(head_dim).take(tokens);
            scores.extend(keys.map(|key| dot(query, key) * scale));
        });
        softmax(scores);
        out.fill(0.0);
        let mut position = 0;
        for_each_block(row, layout.block_size, |block, tokens| {
            let values = head_plane::<E>(memory, layout, block, values_at, head / group);
            for value in values.chunks_exact(head_dim).take(tokens) {
                let weight = scores[position];
                for (out, value) in out.iter_mut().zip(value) {
                    *out += weight * value.widen();
                }
                position += 1;
            }
        });
    }
}

#[inline(always)]
fn for_each_block(row: QueryRow<'_>, block_size: usize, mut visit: impl FnMut(u32, usize)) {
    let mut left = row.context_tokens;
    for block in row.blocks {
        if left == 0 {
            break;
        }
        let tokens = left.min(block_size);
        visit(*block, tokens);
        left -= tokens;
    }
    debug_assert_eq!(left, 0, "the blocks hold the whole context");
}

/// The `[block_size, head_dim]` plane of one KV head in one block.
#[inline(always)]
fn head_plane<'a, E: Element>(
    memory: &'a HostMemory,
    layout: &KvLayout,
    block: u32,
    offset: usize,
    kv_head: usize,
) -> &'a [E] {
    let elements = layout.block_size * layout.head_dim;
    let bytes = elements * size_of::<E>();
    // SAFETY: the engine writes KV before it attends and never at the same time, and a block that
    // is being filled by a transfer belongs to no sequence that attends.
    let plane = unsafe { memory.read(block, offset + kv_head * bytes, bytes) };
    // SAFETY: blocks are page-aligned multiples of planes of E, every bit pattern of which is a
    // number.
    unsafe { std::slice::from_raw_parts(plane.as_ptr().cast(), elements) }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let inverse = 1.0 / sum_of(scores, |score| score);
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}
