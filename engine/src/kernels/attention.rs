//! Causal attention over paged KV. Each (token, query head) walks its context in position order,
//! alone, reading keys and values as they are stored: the result does not depend on how the
//! context was chunked, batched or split over threads.
//!
//! Keys lie transposed in their block, so that the scores of a block's tokens are the lanes of one
//! sum over the head's elements and nothing has to be added across lanes.

use kv_transfer::{HostMemory, KvLayout};
use multiversion::multiversion;

use super::compute::PARALLEL_WORK_MIN;
use super::math::{LANES, exp, sum_of};
use super::{Compute, Element};

/// The shape that all query rows of a batch share.
pub struct AttentionShape<'a> {
    /// Layout of the KV blocks.
    pub layout: &'a KvLayout,
    /// Which layer's planes to read.
    pub layer: usize,
    /// Query heads; a multiple of the layout's KV heads.
    pub heads: usize,
    /// How many tokens a row sees at most, the newest of its context; all where absent.
    pub window: Option<usize>,
}

impl AttentionShape<'_> {
    /// The first position that a row sees: with a window of w, position p sees p - w + 1 to p.
    fn first_seen(&self, row: &QueryRow<'_>) -> usize {
        self.window.map_or(0, |window| row.context_tokens.saturating_sub(window))
    }
}

/// One token that attends.
#[derive(Clone, Copy)]
pub struct QueryRow<'a> {
    /// The blocks of its sequence, in order.
    pub blocks: &'a [u32],
    /// Its context is positions `0..context_tokens`, itself included.
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
    let kv_heads = shape.layout.kv_heads;
    // The query heads that share a KV head are one unit of work.
    let unit_len = shape.heads / kv_heads * shape.layout.head_dim;
    let units = rows.len() * kv_heads;
    let out = SharedUnits { base: out.as_mut_ptr(), unit_len };
    let attend_units = |range: std::ops::Range<usize>| {
        let mut scores = Vec::new();
        for unit in range {
            let (row, kv_head) = (rows[unit / kv_heads], unit % kv_heads);
            let queries = &queries[unit * unit_len..][..unit_len];
            // SAFETY: each unit belongs to one range.
            let out = unsafe { out.unit(unit) };
            attend_unit::<E>(shape, memory, row, kv_head, queries, &mut scores, out);
        }
    };
    let seen = |row: &QueryRow<'_>| row.context_tokens - shape.first_seen(row);
    let seen_tokens: usize = rows.iter().map(seen).sum();
    if 2 * seen_tokens * shape.heads * shape.layout.head_dim < PARALLEL_WORK_MIN {
        return attend_units(0..units);
    }
    // Rows late in a prompt see more than early ones: finer pieces than one per thread.
    let piece = units.div_ceil(32);
    let attend_piece = |start: usize| attend_units(start..units.min(start + piece));
    compute.split_dynamic((0..units).step_by(piece), attend_piece);
}

struct SharedUnits {
    base: *mut f32,
    unit_len: usize,
}

// SAFETY: threads take disjoint units (see `unit`).
unsafe impl Sync for SharedUnits {}

impl SharedUnits {
    /// # Safety
    /// The unit is in bounds, and no other thread takes it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn unit(&self, index: usize) -> &mut [f32] {
        let len = self.unit_len;
        // SAFETY: in bounds and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(index * len), len) }
    }
}

/// One token with the query heads of one KV head: `queries` and `out` are `[group, head_dim]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
fn attend_unit<E: Element>(
    shape: &AttentionShape<'_>,
    memory: &HostMemory,
    row: QueryRow<'_>,
    kv_head: usize,
    queries: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let KvLayout { block_size, head_dim, .. } = *shape.layout;
    // Blocks before the window are not read. The sums begin at the first position seen, which
    // depends on the row alone.
    let first_seen = shape.first_seen(&row);
    let first_block = first_seen / block_size;
    let blocks = &row.blocks[first_block..row.context_tokens.div_ceil(block_size)];
    let seen = first_seen % block_size..row.context_tokens - first_block * block_size;
    let scores_len = blocks.len() * block_size;
    scores.resize(queries.len() / head_dim * scores_len, 0.0);

    let keys_at = shape.layout.keys_offset(shape.layer);
    for (index, block) in blocks.iter().enumerate() {
        let keys = head_plane::<E>(memory, shape.layout, *block, keys_at, kv_head);
        let scores = scores.chunks_exact_mut(scores_len);
        for (query, scores) in queries.chunks_exact(head_dim).zip(scores) {
            score_block(query, keys, &mut scores[index * block_size..][..block_size]);
        }
    }
    let values_at = shape.layout.values_offset(shape.layer);
    let heads = out.chunks_exact_mut(head_dim).zip(scores.chunks_exact_mut(scores_len));
    for (out, scores) in heads {
        // The last block's slots past the context hold what they held before.
        softmax(&mut scores[seen.clone()], 1.0 / (head_dim as f32).sqrt());
        out.fill(0.0);
        let mut slot = seen.start;
        for (block, weights) in blocks.iter().zip(scores[..seen.end].chunks(block_size)) {
            let values = head_plane::<E>(memory, shape.layout, *block, values_at, kv_head);
            add_weighted(&weights[slot..], &values[slot * head_dim..], out);
            slot = 0;
        }
    }
}

/// `scores[slot] = sum over d of query[d] keys[d, slot]`.
#[inline(always)]
fn score_block<E: Element>(query: &[f32], keys: &[E], scores: &mut [f32]) {
    let block_size = scores.len();
    for (chunk, scores) in scores.chunks_mut(LANES).enumerate() {
        let mut lanes = [0.0; LANES];
        for (q, keys) in query.iter().zip(keys.chunks_exact(block_size)) {
            let keys = &keys[chunk * LANES..];
            match keys.first_chunk::<LANES>() {
                Some(keys) => {
                    for lane in 0..LANES {
                        lanes[lane] += q * keys[lane].widen();
                    }
                }
                None => {
                    for (lane, key) in lanes.iter_mut().zip(keys) {
                        *lane += q * key.widen();
                    }
                }
            }
        }
        scores.copy_from_slice(&lanes[..scores.len()]);
    }
}

/// `out[d] += sum over slots of weights[slot] values[slot, d]`, slot by slot.
#[inline(always)]
fn add_weighted<E: Element>(weights: &[f32], values: &[E], out: &mut [f32]) {
    const WIDE: usize = 4 * LANES;
    let head_dim = out.len();
    let (wide, narrow) = out.as_chunks_mut::<WIDE>();
    for (chunk, out) in wide.iter_mut().enumerate() {
        let mut lanes = *out;
        for (weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
            let values = &values[chunk * WIDE..][..WIDE];
            for lane in 0..WIDE {
                lanes[lane] += weight * values[lane].widen();
            }
        }
        *out = lanes;
    }
    let done = head_dim - narrow.len();
    for (weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
        for (out, value) in narrow.iter_mut().zip(&values[done..]) {
            *out += weight * value.widen();
        }
    }
}

/// The plane of one KV head in one block: keys `[head_dim, block_size]`, values
/// `[block_size, head_dim]`.
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
    // SAFETY: the pool begins on a page and consists of whole planes of E, so this one is aligned;
    // every bit pattern is a number.
    unsafe { std::slice::from_raw_parts(plane.as_ptr().cast(), elements) }
}

/// Scales scores and turns them into weights that add up to one.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    for score in scores.iter_mut() {
        *score *= scale;
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let inverse = 1.0 / sum_of(scores, |score| score);
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::KernelPath;

    const HEAD_DIM: usize = 8;
    const BLOCK_SIZE: usize = 16;
    /// A block full of NaN; the others hold numbers.
    const POISON: u32 = 0;

    fn layout() -> KvLayout {
        KvLayout {
            numerics_id: String::new(),
            block_size: BLOCK_SIZE,
            layers: 1,
            kv_heads: 1,
            head_dim: HEAD_DIM,
            element_bytes: size_of::<f32>(),
        }
    }

    fn memory(layout: &KvLayout) -> HostMemory {
        let memory = HostMemory::new(6, layout.block_bytes()).unwrap();
        for block in 0..6 {
            // SAFETY: nobody else has this memory.
            let bytes = unsafe { memory.write(block, 0, layout.block_bytes()) };
            for (index, number) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let value = ((index * 7 + block as usize * 5) % 23) as f32 / 10.0 - 1.0;
                *number = if block == POISON { f32::NAN } else { value }.to_le_bytes();
            }
        }
        memory
    }

    #[test]
    fn a_window_hides_what_lies_before_it_and_nothing_else() {
        let (layout, compute) = (layout(), Compute::new(1, KernelPath::Portable).unwrap());
        let memory = memory(&layout);
        let attended = |blocks: &[u32], context_tokens, window| {
            let shape = AttentionShape { layout: &layout, layer: 0, heads: 1, window };
            let row = QueryRow { blocks, context_tokens };
            let mut out = vec![0.0; HEAD_DIM];
            attend::<f32>(&compute, &shape, &memory, &[row], &[0.7; HEAD_DIM], &mut out);
            out
        };
        for window in 1..50 {
            for context_tokens in 1..=80_usize {
                let hidden = context_tokens.saturating_sub(window) / BLOCK_SIZE;
                let poisoned: Vec<u32> =
                    (0..5).map(|i| if i < hidden { POISON } else { i as u32 + 1 }).collect();
                let found = attended(&poisoned, context_tokens, Some(window));
                let left = context_tokens - hidden * BLOCK_SIZE;
                let alone = attended(&[1, 2, 3, 4, 5][hidden..], left, Some(window));
                assert_eq!(found, alone, "{context_tokens} tokens, window {window}");
                if window >= left {
                    let unlimited = attended(&[1, 2, 3, 4, 5][hidden..], left, None);
                    assert_eq!(found, unlimited, "{context_tokens} tokens, window {window}");
                }
            }
        }
    }
}
