//! What heads go through before attention: a norm, where the model has one, a rotation, and for keys
//! and values the way into their block.

use kv_transfer::{HostMemory, KvLayout};

use super::rope::{RopePairing, rotate};
use super::rows::{SharedMatrix, split_rows};
use super::{Compute, Element, QuerySpan, RmsNorm};

/// What an element of a head costs, in multiply-adds.
const HEAD_COST: usize = 8;

/// How heads of some tokens are made ready.
#[derive(Clone, Copy)]
pub struct HeadShape<'a> {
    /// Cosines, then sines, of each row's position: `[rows, head_dim]`.
    pub angles: &'a [f32],
    /// Elements of a head.
    pub head_dim: usize,
    /// Which elements are rotated together.
    pub pairing: RopePairing,
    /// The norm of each head.
    pub norm: Option<RmsNorm<'a>>,
}

impl HeadShape<'_> {
    /// Normalises and rotates the heads of all rows (`[rows, heads, head_dim]`) in place.
    pub fn prepare(&self, compute: &Compute, heads: &mut [f32], row_len: usize) {
        let cost = HEAD_COST * heads.len();
        split_rows(compute, [(heads, row_len)], cost, |first, [heads]| {
            self.prepare_rows(first, heads, row_len);
        });
    }

    /// Rows from the `first` on.
    fn prepare_rows(&self, first: usize, heads: &mut [f32], row_len: usize) {
        let angles = self.angles[first * self.head_dim..].chunks_exact(self.head_dim);
        for (heads, angles) in heads.chunks_exact_mut(row_len).zip(angles) {
            if let Some(norm) = &self.norm {
                norm.apply_to_heads(heads);
            }
            let (cos, sin) = angles.split_at(self.head_dim / 2);
            rotate(heads, cos, sin, self.pairing);
        }
    }
}

/// Where keys and values are stored.
#[derive(Clone, Copy)]
pub struct KvPlanes<'a> {
    /// Layout of the KV blocks.
    pub layout: &'a KvLayout,
    /// The pool.
    pub memory: &'a HostMemory,
    /// Which layer's planes.
    pub layer: usize,
}

/// Consecutive rows whose positions lie in one block.
struct Piece {
    /// Their first row in the batch.
    row: usize,
    rows: usize,
    block: u32,
    /// The first row's slot.
    slot: usize,
}

impl KvPlanes<'_> {
    /// Makes all spans' keys ready, and stores keys and values (each `[rows, kv_heads, head_dim]`)
    /// where their positions are. Blocks are exclusively the caller's.
    pub fn store<E: Element>(
        &self,
        compute: &Compute,
        spans: &[QuerySpan<'_>],
        shape: &HeadShape<'_>,
        keys: &mut [f32],
        values: &[f32],
    ) {
        let pieces = self.pieces(spans);
        let row_len = self.layout.kv_heads * self.layout.head_dim;
        let cost = 2 * HEAD_COST * keys.len();
        let keys = SharedMatrix::new(keys, row_len);
        // Threads take whole pieces, so each block has one writer.
        compute.split(pieces.len(), 1, cost, |range| {
            for piece in &pieces[range] {
                let rows = piece.row..piece.row + piece.rows;
                // SAFETY: each row belongs to one piece.
                let keys = unsafe { keys.rows(rows.clone()) };
                shape.prepare_rows(piece.row, keys, row_len);
                self.store_piece::<E>(piece, keys, &values[rows.start * row_len..]);
            }
        });
    }

    /// The same of keys that are ready, by the calling thread.
    #[cfg(feature = "candle")]
    pub fn store_ready<E: Element>(&self, spans: &[QuerySpan<'_>], keys: &[f32], values: &[f32]) {
        let row_len = self.layout.kv_heads * self.layout.head_dim;
        for piece in self.pieces(spans) {
            let rows = piece.row * row_len..(piece.row + piece.rows) * row_len;
            self.store_piece::<E>(&piece, &keys[rows.clone()], &values[rows]);
        }
    }

    fn pieces(&self, spans: &[QuerySpan<'_>]) -> Vec<Piece> {
        let block_size = self.layout.block_size;
        let (mut pieces, mut row) = (Vec::new(), 0);
        for span in spans {
            let (mut position, end) = (span.start, span.start + span.rows);
            while position < end {
                let slot = position % block_size;
                let rows = (block_size - slot).min(end - position);
                pieces.push(Piece { row, rows, block: span.blocks[position / block_size], slot });
                position += rows;
                row += rows;
            }
        }
        pieces
    }

    fn store_piece<E: Element>(&self, piece: &Piece, keys: &[f32], values: &[f32]) {
        let KvLayout { block_size, kv_heads, head_dim, .. } = *self.layout;
        let row_len = kv_heads * head_dim;
        let mut turned = vec![0.0; piece.rows];
        for head in 0..kv_heads {
            // Keys lie transposed (see `attention`): element d of a slot at d * block_size + slot.
            let plane = self.plane::<E>(piece.block, self.layout.keys_offset(self.layer), head);
            for d in 0..head_dim {
                for (turned, key) in turned.iter_mut().zip(keys.chunks_exact(row_len)) {
                    *turned = key[head * head_dim + d];
                }
                E::narrow_all(&turned, &mut plane[d * block_size + piece.slot..][..piece.rows]);
            }
            let plane = self.plane::<E>(piece.block, self.layout.values_offset(self.layer), head);
            let slots = plane[piece.slot * head_dim..].chunks_exact_mut(head_dim).take(piece.rows);
            for (slot, values) in slots.zip(values.chunks_exact(row_len)) {
                E::narrow_all(&values[head * head_dim..][..head_dim], slot);
            }
        }
    }

    #[allow(clippy::mut_from_ref)]
    fn plane<E: Element>(&self, block: u32, planes_at: usize, head: usize) -> &mut [E] {
        let elements = self.layout.block_size * self.layout.head_dim;
        let bytes = elements * size_of::<E>();
        // SAFETY: the engine's thread is the only one that computes on this pool, a block that is not
        // full belongs to this piece's sequence alone, and a piece to one thread.
        let plane = unsafe { self.memory.write(block, planes_at + head * bytes, bytes) };
        // SAFETY: as many elements of E, aligned because the pool begins on a page and consists of
        // whole planes of E.
        unsafe { std::slice::from_raw_parts_mut(plane.as_mut_ptr().cast(), elements) }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::kernels::KernelPath;

    const HEAD_DIM: usize = 24;
    const KV_HEADS: usize = 3;
    const ROW_LEN: usize = KV_HEADS * HEAD_DIM;

    fn number(index: usize) -> f32 {
        (index * 7919 % 1009) as f32 / 500.0 - 1.0
    }

    /// Stores spans of two sequences, and finds each number where the layout says that it is.
    fn check<E: Element + PartialEq + std::fmt::Debug>(
        threads: usize,
        block_size: usize,
        pairing: RopePairing,
    ) {
        let layout = KvLayout {
            numerics_id: String::new(),
            block_size,
            layers: 2,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            element_bytes: size_of::<E>(),
        };
        let blocks: Vec<u32> = (0..2 * layout.blocks_for(400) as u32).rev().collect();
        let memory = HostMemory::new(blocks.len(), layout.block_bytes()).unwrap();
        let (first, second) = blocks.split_at(blocks.len() / 2);
        let spans = [
            QuerySpan { blocks: first, start: 5, rows: 300 },
            QuerySpan { blocks: second, start: 399, rows: 1 },
        ];
        let rows = 301;
        let compute = Compute::new(threads, KernelPath::Portable).unwrap();
        let angles: Vec<f32> = (0..rows * HEAD_DIM).map(|index| number(index + 3)).collect();
        let weight: Vec<f32> = (0..HEAD_DIM).map(number).collect();
        let norm = Some(RmsNorm { weight: &weight, epsilon: 1e-6 });
        let shape = HeadShape { angles: &angles, head_dim: HEAD_DIM, pairing, norm };
        let mut keys: Vec<f32> = (0..rows * ROW_LEN).map(number).collect();
        let values: Vec<f32> = keys.iter().map(|key| key + 0.3).collect();
        let mut expected = keys.clone();
        for (row, heads) in expected.chunks_exact_mut(ROW_LEN).enumerate() {
            RmsNorm { weight: &weight, epsilon: 1e-6 }.apply_to_heads(heads);
            let (cos, sin) = angles[row * HEAD_DIM..][..HEAD_DIM].split_at(HEAD_DIM / 2);
            rotate(heads, cos, sin, pairing);
        }

        let planes = KvPlanes { layout: &layout, memory: &memory, layer: 1 };
        planes.store::<E>(&compute, &spans, &shape, &mut keys, &values);

        let positions = spans.iter().flat_map(|span| {
            (span.start..span.start + span.rows).map(|position| (span.blocks, position))
        });
        for (row, (blocks, position)) in positions.enumerate() {
            let (block, slot) = (blocks[position / block_size], position % block_size);
            for index in 0..ROW_LEN {
                let (head, d) = (index / HEAD_DIM, index % HEAD_DIM);
                let keys = planes.plane::<E>(block, layout.keys_offset(1), head);
                let key = E::narrow(expected[row * ROW_LEN + index]);
                assert_eq!(keys[d * block_size + slot], key, "key {index} of row {row}");
                let stored = planes.plane::<E>(block, layout.values_offset(1), head);
                let value = E::narrow(values[row * ROW_LEN + index]);
                assert_eq!(stored[slot * HEAD_DIM + d], value, "value {index} of row {row}");
            }
        }
    }

    #[test]
    fn keys_and_values_are_stored_where_they_belong() {
        for threads in [1, 2] {
            for pairing in [RopePairing::Halves, RopePairing::Neighbours] {
                for block_size in [8, 16, 24, 64] {
                    check::<f32>(threads, block_size, pairing);
                    check::<bf16>(threads, block_size, pairing);
                    check::<f16>(threads, block_size, pairing);
                }
            }
        }
    }
}
