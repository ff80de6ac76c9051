//! Where the keys and values of a chunk of positions lie.

use std::ops::Range;

use kv_transfer::KvLayout;

use super::tile::Tile;
use crate::kernels::Element;
use crate::kernels::math::LANES;
use crate::kernels::simd::Simd;

/// Softmax goes on by so many positions at a time.
pub const CHUNK_TOKENS: usize = 64;
const SLABS: usize = CHUNK_TOKENS / LANES;

/// The slabs of a chunk, in order; those that nobody sees may be empty.
pub type Slabs<'a, X> = [Slab<'a, X>; SLABS];

/// The keys and values of 16 consecutive positions.
#[derive(Clone, Copy)]
pub struct Slab<'a, X> {
    /// Element d of the first position is at `d * stride`, the others behind it.
    pub keys: &'a [X],
    pub stride: usize,
    /// `[16, head_dim]`.
    pub values: &'a [X],
    /// The same 16 positions of the next chunk, or of this one where that is not read.
    pub ahead: Ahead<X>,
}

/// What will be read soon: never read from here, only fetched.
#[derive(Clone, Copy)]
pub struct Ahead<X> {
    pub keys: *const X,
    pub values: *const X,
}

/// A chunk of positions, some of which are seen.
pub struct Chunk<'a> {
    pub tile: &'a Tile<'a>,
    /// A multiple of `CHUNK_TOKENS`.
    pub start: usize,
    /// What is seen of it by anyone.
    seen: Range<usize>,
    /// How far chunks go on.
    end: usize,
}

/// Keys and values as f32: `[slabs, head_dim, 16]` and `[slabs, 16, head_dim]`.
#[derive(Default)]
pub struct Widened {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> Chunk<'a> {
    /// The chunk with this position, of which nothing is seen before it and from `end` on.
    #[inline(always)]
    pub fn new(tile: &'a Tile<'a>, position: usize, end: usize) -> Self {
        let start = position / CHUNK_TOKENS * CHUNK_TOKENS;
        Self { tile, start, seen: position..end.min(start + CHUNK_TOKENS), end }
    }

    /// What is seen of a slab, where anything is.
    #[inline(always)]
    fn seen_of(&self, slab: usize) -> Range<usize> {
        let start = self.start + slab * LANES;
        self.seen.start.max(start)..self.seen.end.min(start + LANES)
    }

    /// Slabs where they are stored. The size of blocks is a multiple of 16.
    #[inline(always)]
    pub fn stored<E: Element>(&self) -> Slabs<'a, E> {
        let KvLayout { block_size, head_dim, .. } = *self.tile.shape.layout;
        let nothing: &[E] = &[];
        let ahead = Ahead { keys: nothing.as_ptr(), values: nothing.as_ptr() };
        let mut slabs = [Slab { keys: nothing, stride: block_size, values: nothing, ahead }; SLABS];
        for (index, slab) in slabs.iter_mut().enumerate() {
            if self.seen_of(index).is_empty() {
                continue;
            }
            let stored_at = |start: usize| {
                let slot = start % block_size;
                let (keys, values) = planes::<E>(self.tile, start / block_size);
                (&keys[slot..], &values[slot * head_dim..][..LANES * head_dim])
            };
            let start = self.start + index * LANES;
            (slab.keys, slab.values) = stored_at(start);
            let ahead = if start + CHUNK_TOKENS < self.end { start + CHUNK_TOKENS } else { start };
            let (keys, values) = stored_at(ahead);
            slab.ahead = Ahead { keys: keys.as_ptr(), values: values.as_ptr() };
        }
        slabs
    }

    /// Slabs widened into `into`.
    #[inline(always)]
    pub fn widened<'w, S: Simd, E: Element>(
        &self,
        simd: S,
        into: &'w mut Widened,
    ) -> Slabs<'w, f32> {
        let KvLayout { block_size, head_dim, .. } = *self.tile.shape.layout;
        let slab_len = LANES * head_dim;
        into.keys.resize(SLABS * slab_len, 0.0);
        into.values.resize(SLABS * slab_len, 0.0);
        for index in 0..SLABS {
            let mut seen = self.seen_of(index);
            let slab_start = self.start + index * LANES;
            while !seen.is_empty() {
                let (block, slot) = (seen.start / block_size, seen.start % block_size);
                let count = seen.len().min(block_size - slot);
                let (keys, values) = planes::<E>(self.tile, block);
                let lane = seen.start - slab_start;
                let to = &mut into.keys[index * slab_len..][..slab_len];
                widen_keys(simd, block_size, &keys[slot..], lane..lane + count, to);
                let to = &mut into.values[index * slab_len + lane * head_dim..];
                let from = &values[slot * head_dim..][..count * head_dim];
                widen(simd, from, &mut to[..count * head_dim]);
                seen.start += count;
            }
        }
        let slab = |index| {
            let keys = &into.keys[index * slab_len..][..slab_len];
            let values = &into.values[index * slab_len..][..slab_len];
            let ahead = Ahead { keys: keys.as_ptr(), values: values.as_ptr() };
            Slab { keys, stride: LANES, values, ahead }
        };
        [slab(0), slab(1), slab(2), slab(3)]
    }
}

/// Keys of consecutive slots of a block to these lanes of a slab.
#[inline(always)]
fn widen_keys<S: Simd, E: Element>(
    simd: S,
    block_size: usize,
    keys: &[E],
    lanes: Range<usize>,
    to: &mut [f32],
) {
    for (keys, to) in keys.chunks(block_size).zip(to.as_chunks_mut::<LANES>().0) {
        match keys.first_chunk::<LANES>() {
            Some(keys) if lanes.len() == LANES => simd.store(E::load(simd, keys), to),
            _ => {
                for (key, to) in keys.iter().zip(&mut to[lanes.clone()]) {
                    *to = key.widen();
                }
            }
        }
    }
}

#[inline(always)]
fn widen<S: Simd, E: Element>(simd: S, from: &[E], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        simd.store(E::load(simd, from), to);
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = from.widen();
    }
}

/// The planes of the tile's KV head in a block of its sequence: keys `[head_dim, block_size]`, values
/// `[block_size, head_dim]`.
#[inline(always)]
fn planes<'a, E: Element>(tile: &Tile<'a>, block: usize) -> (&'a [E], &'a [E]) {
    let layout = tile.shape.layout;
    let elements = layout.block_size * layout.head_dim;
    let bytes = elements * size_of::<E>();
    let plane = |offset: usize| {
        let offset = offset + tile.kv_head * bytes;
        // SAFETY: the engine writes KV before it attends and never at the same time, and a block
        // that is being filled by a transfer belongs to no sequence that attends.
        let plane = unsafe { tile.memory.read(tile.blocks[block], offset, bytes) };
        // SAFETY: the pool begins on a page and consists of whole planes of E, so this one is
        // aligned; every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(plane.as_ptr().cast(), elements) }
    };
    let layer = tile.shape.layer;
    (plane(layout.keys_offset(layer)), plane(layout.values_offset(layer)))
}
