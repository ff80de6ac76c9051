//! A few tokens of one sequence against a part of their context.

use std::marker::PhantomData;
use std::ops::Range;

use kv_transfer::HostMemory;

use super::AttentionShape;
use super::chunk::{CHUNK_TOKENS, Chunk, Slabs, Widened};
use super::group::{GROUP_MAX, Group, attend_group};
use super::partial::Partial;
use crate::kernels::Element;
use crate::kernels::math::LANES;
use crate::kernels::simd::{Simd, Work};

/// Consecutive tokens of one sequence, with the query heads of one KV head: `rows * group` queries,
/// row by row.
pub struct Tile<'a> {
    pub shape: &'a AttentionShape<'a>,
    pub memory: &'a HostMemory,
    pub blocks: &'a [u32],
    pub kv_head: usize,
    /// Position of the first row.
    pub start: usize,
    pub rows: usize,
    /// `[rows, heads, head_dim]`, from the first query on.
    pub queries: &'a [f32],
}

impl Tile<'_> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.layout.kv_heads
    }

    /// How many queries.
    pub fn queries(&self) -> usize {
        self.rows * self.group()
    }

    /// The positions that any row sees.
    pub fn seen(&self) -> Range<usize> {
        self.seen_by(0).start..self.start + self.rows
    }

    fn seen_by(&self, query: usize) -> Range<usize> {
        let end = self.start + query / self.group() + 1;
        self.shape.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn query(&self, query: usize) -> &[f32] {
        let (row, head) = (query / self.group(), query % self.group());
        let head_dim = self.shape.layout.head_dim;
        &self.queries[(row * self.shape.heads + head) * head_dim..][..head_dim]
    }
}

/// Memory that is used again for each part.
#[derive(Default)]
pub struct Scratch {
    /// Scaled queries: of each group `[head_dim, queries of the group]`.
    queries: Vec<f32>,
    widened: Widened,
}

/// All queries of a tile, against some positions: at most a part, which begins with a chunk.
pub struct PartOfTile<'a, E> {
    pub tile: &'a Tile<'a>,
    pub positions: Range<usize>,
    pub scratch: &'a mut Scratch,
    /// Of nothing yet.
    pub partial: &'a mut Partial,
    pub element: PhantomData<E>,
}

impl<E: Element> Work for PartOfTile<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { tile, positions, scratch, partial, .. } = self;
        let group_max = if S::IS_WIDE { GROUP_MAX } else { GROUP_MAX / 2 };
        pack_queries(tile, group_max, &mut scratch.queries);
        // Several groups share what is widened once; one group widens what it reads.
        let is_direct = E::IS_F32 || tile.queries() <= group_max;
        let is_direct = is_direct && tile.shape.layout.block_size.is_multiple_of(LANES);
        let mut position = positions.start;
        while position < positions.end {
            let chunk = Chunk::new(tile, position, positions.end);
            if is_direct {
                let slabs = chunk.stored::<E>();
                attend_chunk(simd, &chunk, &slabs, group_max, &scratch.queries, partial);
            } else {
                let slabs = chunk.widened::<S, E>(simd, &mut scratch.widened);
                attend_chunk(simd, &chunk, &slabs, group_max, &scratch.queries, partial);
            }
            position = chunk.start + CHUNK_TOKENS;
        }
    }
}

/// Scales queries, and turns each group so that a position's products take them in order.
#[inline(always)]
fn pack_queries(tile: &Tile<'_>, group_max: usize, packed: &mut Vec<f32>) {
    let head_dim = tile.shape.layout.head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    packed.resize(tile.queries() * head_dim, 0.0);
    for (index, packed) in packed.chunks_mut(group_max * head_dim).enumerate() {
        let queries = packed.len() / head_dim;
        let first = index * group_max;
        let rows: [&[f32]; GROUP_MAX] =
            std::array::from_fn(|query| tile.query(first + query.min(queries - 1)));
        for (d, packed) in packed.chunks_exact_mut(queries).enumerate() {
            for (packed, row) in packed.iter_mut().zip(rows) {
                *packed = row[d] * scale;
            }
        }
    }
}

#[inline(always)]
fn attend_chunk<S: Simd, X: Element>(
    simd: S,
    chunk: &Chunk<'_>,
    slabs: &Slabs<'_, X>,
    group_max: usize,
    packed: &[f32],
    partial: &mut Partial,
) {
    let head_dim = chunk.tile.shape.layout.head_dim;
    let queries = chunk.tile.queries();
    for first in (0..queries).step_by(group_max) {
        let group = first..queries.min(first + group_max);
        let values = group.start * head_dim..group.end * head_dim;
        let group = Group {
            queries: &packed[values.clone()],
            seen: std::array::from_fn(|query| seen(chunk, first + query)),
            maxima: &mut partial.maxima[group.clone()],
            sums: &mut partial.sums[group],
            values: &mut partial.values[values],
        };
        attend_group(simd, slabs, group);
    }
}

/// Which positions of the chunk a query sees.
fn seen(chunk: &Chunk<'_>, query: usize) -> Range<usize> {
    let seen = chunk.tile.seen_by(query);
    let within = |position: usize| position.saturating_sub(chunk.start).min(CHUNK_TOKENS);
    within(seen.start)..within(seen.end)
}
