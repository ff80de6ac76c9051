//! How large what the kernels compute at once is: threads and shared memory, as each source has them.

use super::{PART_THREADS, PART_TOKENS};
use crate::shape::{Dtype, KernelShape, UnsupportedShape};

const CHUNK_TOKENS: usize = 64;
const CHUNKS: usize = PART_TOKENS / CHUNK_TOKENS;

/// Of the launches of `attend_parts` and `attend_tiles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Queries of a tile: as many as make reading keys and values cheap, and the card has room for.
    pub tile_queries: usize,
    pub tile_threads: usize,
    pub tile_shared_bytes: usize,
    /// Blocks of threads that share the queries of a KV head in `attend_parts`.
    pub subgroups: usize,
    pub part_shared_bytes: usize,
}

impl Sizes {
    pub fn of(shape: &KernelShape) -> Self {
        if shape.has_tensor_cores() {
            Self::of_tensor_cores(shape)
        } else {
            Self::of_scalars(shape)
        }
    }

    /// Errors: the card has not enough shared memory, not even for the smallest tile.
    pub fn check(shape: &KernelShape) -> Result<(), UnsupportedShape> {
        let sizes = Self::of(shape);
        let needed = sizes.tile_shared_bytes.max(sizes.part_shared_bytes);
        let available = shape.shared_bytes_max;
        if needed > available {
            return Err(UnsupportedShape::SharedMemory { available, needed });
        }
        Ok(())
    }

    /// `kernels/attention.cu`.
    fn of_scalars(shape: &KernelShape) -> Self {
        const PART_QUERIES_MAX: usize = 8;
        let shared_bytes = |queries: usize| {
            let staged = shape.head_dim * (queries + CHUNK_TOKENS);
            let weights = CHUNK_TOKENS * (queries + 4);
            size_of::<f32>() * (staged + weights + 5 * queries)
        };
        let tile_queries = largest_tile(&[64, 32, 16], shape, shared_bytes);
        let queries = shape.group().min(PART_QUERIES_MAX);
        let sets = (PART_THREADS / (shape.head_dim / 2)).min(queries);
        let stride = queries.next_multiple_of(queries.div_ceil(sets)).next_multiple_of(4);
        Self {
            tile_queries,
            tile_threads: 4 * tile_queries,
            tile_shared_bytes: shared_bytes(tile_queries),
            subgroups: shape.group().div_ceil(queries),
            part_shared_bytes: size_of::<f32>()
                * stride
                * (shape.head_dim + PART_TOKENS + CHUNKS + 2),
        }
    }

    /// `kernels/attention_mma.cu`.
    fn of_tensor_cores(shape: &KernelShape) -> Self {
        let (head_dim, element_bytes) = (shape.head_dim, shape.kv.bytes());
        let is_wide = head_dim > 128;
        let keys = head_dim * (CHUNK_TOKENS + 8) * element_bytes;
        let values = CHUNK_TOKENS * (head_dim + 8) * element_bytes;
        // Wide heads' columns are shared by two warps, each with 16 queries.
        let threads = |queries: usize| queries / 16 * 32 * if is_wide { 2 } else { 1 };
        let shared_bytes = |queries: usize| {
            let softened = threads(queries) * 4 * size_of::<f32>();
            keys + values + queries * head_dim * element_bytes + softened
        };
        let candidates: &[usize] = if is_wide { &[64, 32, 16] } else { &[128, 64, 32, 16] };
        let tile_queries = largest_tile(candidates, shape, shared_bytes);
        let ring = if is_wide { 2 } else { 3 } * keys.max(values);
        let scores = shape.group() * (PART_TOKENS + 8 + CHUNKS + 1) * size_of::<f32>();
        Self {
            tile_queries,
            tile_threads: threads(tile_queries),
            tile_shared_bytes: shared_bytes(tile_queries),
            subgroups: 1,
            part_shared_bytes: ring + scores,
        }
    }
}

/// The first of the candidates that fits into shared memory, or the last one.
fn largest_tile(
    candidates: &[usize],
    shape: &KernelShape,
    shared_bytes: impl Fn(usize) -> usize,
) -> usize {
    let fits = |queries: &usize| shared_bytes(*queries) <= shape.shared_bytes_max;
    let smallest = candidates[candidates.len() - 1];
    candidates.iter().copied().find(fits).unwrap_or(smallest)
}

impl KernelShape {
    /// Whether attention is computed on tensor cores, by `kernels/attention_mma.cu`: for whole steps of
    /// 16 elements of 16 bits each, where shared memory has room for it.
    pub fn has_tensor_cores(&self) -> bool {
        let is_whole = self.kv != Dtype::F32 && self.head_dim.is_multiple_of(16);
        let fits = |sizes: Sizes| {
            sizes.tile_shared_bytes.max(sizes.part_shared_bytes) <= self.shared_bytes_max
        };
        is_whole && fits(Sizes::of_tensor_cores(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::llama_8b;

    #[test]
    fn tiles_are_as_large_as_shared_memory_allows() {
        let check = |kv, head_dim, shared_bytes_max, expected| {
            let shape = KernelShape { kv, head_dim, shared_bytes_max, ..llama_8b() };
            assert_eq!(shape.check(), Ok(()));
            let sizes = Sizes::of(&shape);
            assert_eq!((sizes.tile_queries, sizes.tile_threads), expected, "{shape:?}");
            assert!(sizes.tile_shared_bytes <= shared_bytes_max);
        };
        check(Dtype::F32, 128, 227 << 10, (64, 256));
        check(Dtype::F32, 128, 99 << 10, (64, 256));
        check(Dtype::F32, 256, 227 << 10, (64, 256));
        check(Dtype::F32, 256, 163 << 10, (64, 256));
        check(Dtype::F32, 256, 99 << 10, (16, 64));
        check(Dtype::F32, 192, 99 << 10, (32, 128));
        check(Dtype::Bf16, 64, 99 << 10, (128, 256));
        check(Dtype::Bf16, 128, 99 << 10, (128, 256));
        check(Dtype::F16, 256, 163 << 10, (64, 256));
        check(Dtype::F16, 256, 99 << 10, (32, 128));
    }

    #[test]
    fn tensor_cores_take_whole_steps_of_16_bits_that_fit() {
        let check = |shape: KernelShape, expected| {
            assert_eq!(shape.has_tensor_cores(), expected, "{shape:?}");
            assert_eq!(shape.check(), Ok(()));
        };
        let shape = llama_8b();
        check(shape, true);
        check(KernelShape { kv: Dtype::F16, head_dim: 80, ..shape }, true);
        check(KernelShape { kv: Dtype::F32, ..shape }, false);
        check(KernelShape { head_dim: 72, ..shape }, false);
        // 16 queries of wide heads leave a small card no room for their scores.
        let wide = KernelShape { head_dim: 256, kv_heads: 2, ..shape };
        check(wide, true);
        check(KernelShape { shared_bytes_max: 99 << 10, ..wide }, false);
        check(KernelShape { shared_bytes_max: 99 << 10, kv_heads: 4, ..wide }, true);
    }
}
