//! Keys and values on their way into blocks and out of them: the only place that knows where blocks
//! lie. Today that is host memory, so what a GPU computed crosses the bus each time.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, WithDType};
use half::{bf16, f16};
use kv_transfer::{HostMemory, KvLayout};

use crate::kernels::{Element, KvPlanes, QuerySpan};

/// One layer's part of the pool.
#[derive(Clone, Copy)]
pub struct KvCache<'a> {
    /// Layout of the KV blocks.
    pub layout: &'a KvLayout,
    /// The pool.
    pub memory: &'a HostMemory,
    /// Which layer.
    pub layer: usize,
    /// As what KV is stored: F32, BF16 or F16.
    pub dtype: DType,
}

/// The keys and values of one sequence, up to some position.
pub struct Context {
    /// f32, `[kv_heads, head_dim, positions]`: `tokens`, then zeros.
    pub keys: Tensor,
    /// f32, `[kv_heads, positions, head_dim]`, likewise.
    pub values: Tensor,
    /// Positions that hold something.
    pub tokens: usize,
}

impl Context {
    /// Keys and values of consecutive positions.
    pub fn piece(&self, positions: Range<usize>) -> Result<(Tensor, Tensor)> {
        let keys = self.keys.narrow(2, positions.start, positions.len())?.contiguous()?;
        let values = self.values.narrow(1, positions.start, positions.len())?.contiguous()?;
        Ok((keys, values))
    }
}

impl KvCache<'_> {
    /// Stores keys and values (each f32, `[rows, kv_heads, head_dim]`) where the spans' positions are.
    /// Blocks are exclusively the caller's.
    pub fn store(&self, spans: &[QuerySpan<'_>], keys: &Tensor, values: &Tensor) -> Result<()> {
        let [keys, values] = [keys, values].map(|x| x.flatten_all()?.to_vec1::<f32>());
        let (keys, values) = (keys?, values?);
        let planes = KvPlanes { layout: self.layout, memory: self.memory, layer: self.layer };
        match self.dtype {
            DType::F32 => planes.store_ready::<f32>(spans, &keys, &values),
            DType::F16 => planes.store_ready::<f16>(spans, &keys, &values),
            _ => planes.store_ready::<bf16>(spans, &keys, &values),
        }
        Ok(())
    }

    /// What was stored of a sequence's first `tokens` positions, and zeros up to a multiple of `pieces`.
    pub fn gather(
        &self,
        blocks: &[u32],
        tokens: usize,
        pieces: usize,
        device: &Device,
    ) -> Result<Context> {
        match self.dtype {
            DType::F32 => self.gather_as::<f32>(blocks, tokens, pieces, device),
            DType::F16 => self.gather_as::<f16>(blocks, tokens, pieces, device),
            _ => self.gather_as::<bf16>(blocks, tokens, pieces, device),
        }
    }

    fn gather_as<E: Element + WithDType>(
        &self,
        blocks: &[u32],
        tokens: usize,
        pieces: usize,
        device: &Device,
    ) -> Result<Context> {
        let KvLayout { block_size, kv_heads, head_dim, .. } = *self.layout;
        let positions = tokens.next_multiple_of(pieces);
        let mut keys = vec![E::narrow(0.0); kv_heads * head_dim * positions];
        let mut values = keys.clone();
        for (index, block) in blocks[..self.layout.blocks_for(tokens)].iter().enumerate() {
            let start = index * block_size;
            let count = block_size.min(tokens - start);
            let stored = self.plane::<E>(*block, self.layout.keys_offset(self.layer));
            let rows = stored.chunks_exact(block_size).zip(keys.chunks_exact_mut(positions));
            rows.for_each(|(from, to)| to[start..start + count].copy_from_slice(&from[..count]));
            let stored = self.plane::<E>(*block, self.layout.values_offset(self.layer));
            let heads = stored.chunks_exact(block_size * head_dim);
            for (from, to) in heads.zip(values.chunks_exact_mut(positions * head_dim)) {
                let (start, len) = (start * head_dim, count * head_dim);
                to[start..start + len].copy_from_slice(&from[..len]);
            }
        }
        let keys = Tensor::from_vec(keys, (kv_heads, head_dim, positions), device)?;
        let values = Tensor::from_vec(values, (kv_heads, positions, head_dim), device)?;
        let [keys, values] = [keys, values].map(|x| x.to_dtype(DType::F32));
        Ok(Context { keys: keys?, values: values?, tokens })
    }

    fn plane<E: Element>(&self, block: u32, offset: usize) -> &[E] {
        let bytes = self.layout.plane_bytes();
        // SAFETY: the engine's thread is the only one that writes to blocks of running sequences, and
        // this is that thread, which writes in `store` alone.
        let plane = unsafe { self.memory.read(block, offset, bytes) };
        // SAFETY: whole elements of E, aligned because the pool begins on a page and consists of
        // planes of E; every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(plane.as_ptr().cast(), bytes / size_of::<E>()) }
    }
}
