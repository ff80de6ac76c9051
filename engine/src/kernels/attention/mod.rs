//! Causal attention over paged KV.
//!
//! Each query (a token's head) has one order of operations, which depends on its position, its window
//! and its head's length alone: not on the size of blocks, the chunk it is computed in, the queries
//! beside it or the number of threads.
//!
//! - A score is summed over the head's elements in order. Keys lie transposed in their block, so that
//!   scores of consecutive positions are lanes and nothing is added across lanes.
//! - Softmax runs online (Milakov and Gimelshein 2018) over chunks of 64 positions, which begin at
//!   multiples of 64; values are added in the order of positions.
//! - Parts of 512 positions begin at multiples of 512. Each starts from nothing, and is then merged
//!   into those before it (as in Dao et al. 2023), so that threads may share a long context.
//!
//! Keys and values are read as they are stored, also a chunk's own.

mod chunk;
mod group;
mod partial;
#[cfg(test)]
mod tests;
mod tile;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use kv_transfer::{HostMemory, KvLayout};

use super::compute::PARALLEL_WORK_MIN;
use super::rows::SharedMatrix;
use super::simd;
use super::{Compute, Element};
use partial::Partial;
use tile::{PartOfTile, Scratch, Tile};

/// Positions that are reduced together before they are merged with those before.
const PART_TOKENS: usize = 512;
/// Queries of a tile: as many as make widening its keys and values cheap, and fit the caches.
const TILE_QUERIES: usize = 64;
/// Work is cut into about so many pieces: rows late in a prompt see more than early ones, so pieces
/// are finer than one per thread.
const PIECES: usize = 32;

/// The shape that all tokens of a batch share.
#[derive(Clone, Copy)]
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

/// Consecutive tokens of one sequence that attend.
#[derive(Clone, Copy)]
pub struct QuerySpan<'a> {
    /// The blocks of its sequence, in order.
    pub blocks: &'a [u32],
    /// Position of the first token. A token sees all positions up to its own.
    pub start: usize,
    /// How many tokens: rows.
    pub rows: usize,
}

/// Attends with all spans' rows of `queries` (`[rows, heads, head_dim]`) into `out` (same shape). Keys
/// and values of all positions up to each row's own must already be in the pool.
pub fn attend<E: Element>(
    compute: &Compute,
    shape: &AttentionShape<'_>,
    memory: &HostMemory,
    spans: &[QuerySpan<'_>],
    queries: &[f32],
    out: &mut [f32],
) {
    let pass = Pass { compute, shape, memory, queries, element: PhantomData::<E> };
    let units = pass.units(spans);
    let out = SharedMatrix::new(out, shape.heads * shape.layout.head_dim);
    let seen_tokens: usize = units.iter().map(|u| u.tile.rows * u.tile.seen().len()).sum();
    let group_len = shape.heads / shape.layout.kv_heads * shape.layout.head_dim;
    if 2 * seen_tokens * group_len < PARALLEL_WORK_MIN {
        pass.attend_units(&units, &out);
    } else if 2 * units.len() <= PIECES {
        pass.attend_parts(&units, &out);
    } else {
        let pieces: Vec<_> = units.chunks(units.len().div_ceil(PIECES)).collect();
        compute.split_dynamic(pieces.len(), |piece| pass.attend_units(pieces[piece], &out));
    }
}

/// One layer's attention.
struct Pass<'a, E> {
    compute: &'a Compute,
    shape: &'a AttentionShape<'a>,
    memory: &'a HostMemory,
    queries: &'a [f32],
    element: PhantomData<E>,
}

/// A tile, and where its rows are in the batch.
struct Unit<'a> {
    tile: Tile<'a>,
    row: usize,
}

impl<'a, E: Element> Pass<'a, E> {
    /// Cuts spans into tiles, for each KV head.
    fn units(&self, spans: &[QuerySpan<'a>]) -> Vec<Unit<'a>> {
        let Self { shape, memory, .. } = *self;
        let KvLayout { kv_heads, head_dim, .. } = *shape.layout;
        let group = shape.heads / kv_heads;
        let tile_rows = (TILE_QUERIES / group).max(1);
        let mut units = Vec::new();
        let mut span_row = 0;
        for span in spans {
            for offset in (0..span.rows).step_by(tile_rows) {
                let (start, row) = (span.start + offset, span_row + offset);
                let rows = tile_rows.min(span.rows - offset);
                for kv_head in 0..kv_heads {
                    let queries_at = (row * shape.heads + kv_head * group) * head_dim;
                    let queries = &self.queries[queries_at..];
                    let blocks = span.blocks;
                    let tile = Tile { shape, memory, blocks, kv_head, start, rows, queries };
                    units.push(Unit { tile, row });
                }
            }
            span_row += span.rows;
        }
        units
    }

    /// Each unit alone, part after part.
    fn attend_units(&self, units: &[Unit<'_>], out: &SharedMatrix<'_>) {
        let mut scratch = Scratch::default();
        for unit in units {
            let parts = parts_of(&unit.tile);
            let whole = parts.map(|part| self.attend_part(&unit.tile, part, &mut scratch));
            self.write(unit, whole.reduce(Partial::merged), out);
        }
    }

    /// All parts of all units at once: for few tokens with much to see.
    fn attend_parts(&self, units: &[Unit<'_>], out: &SharedMatrix<'_>) {
        let jobs = units.iter().flat_map(|unit| parts_of(&unit.tile).map(move |part| (unit, part)));
        let jobs: Vec<_> = jobs.collect();
        let results: Vec<OnceLock<Partial>> = jobs.iter().map(|_| OnceLock::new()).collect();
        self.compute.split_dynamic(jobs.len(), |job| {
            let (unit, part) = &jobs[job];
            let result = self.attend_part(&unit.tile, *part, &mut Scratch::default());
            // Each job has a place of its own.
            let _ = results[job].set(result);
        });
        let mut results = results.into_iter().filter_map(OnceLock::into_inner);
        for unit in units {
            let parts = results.by_ref().take(parts_of(&unit.tile).len());
            self.write(unit, parts.reduce(Partial::merged), out);
        }
    }

    fn attend_part(&self, tile: &Tile<'_>, part: usize, scratch: &mut Scratch) -> Partial {
        let mut partial = Partial::new(tile.queries(), self.shape.layout.head_dim);
        let seen = tile.seen();
        let positions = seen.start.max(part * PART_TOKENS)..seen.end.min((part + 1) * PART_TOKENS);
        let element = PhantomData::<E>;
        simd::run(PartOfTile { tile, positions, scratch, partial: &mut partial, element });
        partial
    }

    fn write(&self, unit: &Unit<'_>, whole: Option<Partial>, out: &SharedMatrix<'_>) {
        // A token sees itself, so there is a part.
        let Some(whole) = whole else { return };
        let unit_len = whole.values_len() / unit.tile.rows;
        let columns = unit.tile.kv_head * unit_len..(unit.tile.kv_head + 1) * unit_len;
        for row in 0..unit.tile.rows {
            // SAFETY: no two units have a row and a KV head in common.
            let out = unsafe { out.part(unit.row + row, columns.clone()) };
            whole.write_values(row * unit_len, out);
        }
    }
}

/// Which parts of its context a tile sees.
fn parts_of(tile: &Tile<'_>) -> Range<usize> {
    let seen = tile.seen();
    seen.start / PART_TOKENS..seen.end.div_ceil(PART_TOKENS)
}
