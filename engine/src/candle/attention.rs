//! Causal attention over one sequence's keys and values, by candle's operations.
//!
//! Softmax runs online (Milakov and Gimelshein 2018) over pieces of the context; what nobody sees is
//! masked. A piece that a query sees nothing of changes none of its bits, so it does not matter which
//! of those are left out.

use std::ops::Range;

use candle_core::{D, Result, Tensor};

use super::kv::Context;
use super::shapes::AttentionTile;

/// The score of what is not seen. Its exponential is 0 beside any that is seen, and unlike an infinity
/// it may be subtracted from itself.
const UNSEEN: f32 = -1e30;

/// The queries of consecutive tokens of one sequence.
pub struct Queries<'a> {
    /// `[rows, heads, head_dim]`, f32.
    pub queries: &'a Tensor,
    /// Position of the first row.
    pub start: usize,
    /// How many tokens a row sees at most, the newest of its context; all where absent.
    pub window: Option<usize>,
}

impl Queries<'_> {
    /// What they attend to: `[rows, heads * head_dim]`. `context` reaches up to the last row's position.
    pub fn attend(&self, context: &Context, tile: Option<AttentionTile>) -> Result<Tensor> {
        let (rows, heads, head_dim) = self.queries.dims3()?;
        // Where tiles are fixed, a query's place in its tile is that of its position.
        let before = tile.map_or(0, |tile| self.start % tile.queries);
        let tile = tile.unwrap_or(AttentionTile { queries: rows, positions: context.tokens });
        let behind = (before + rows).next_multiple_of(tile.queries) - before - rows;
        let queries = self.queries.pad_with_zeros(0, before, behind)?;
        let mut attended = Vec::new();
        for first in (0..before + rows).step_by(tile.queries) {
            let queries = queries.narrow(0, first, tile.queries)?;
            // Of those that are only there to fill up, some would come before the first token.
            let first_position = (self.start + first) as isize - before as isize;
            let part = Tile { queries: &queries, first_position, window: self.window };
            attended.push(part.attend(context, tile.positions)?);
        }
        let attended = Tensor::cat(&attended, 0)?.narrow(0, before, rows)?;
        attended.reshape((rows, heads * head_dim))
    }
}

/// Queries that attend together.
struct Tile<'a> {
    /// `[rows, heads, head_dim]`
    queries: &'a Tensor,
    first_position: isize,
    window: Option<usize>,
}

impl Tile<'_> {
    /// `[rows, heads, head_dim]`
    fn attend(&self, context: &Context, positions: usize) -> Result<Tensor> {
        let (rows, heads, head_dim) = self.queries.dims3()?;
        let kv_heads = context.keys.dim(0)?;
        let group = heads / kv_heads;
        // Heads that share keys and values are rows of one product.
        let queries = self.queries.reshape((rows, kv_heads, group, head_dim))?;
        let queries = queries.permute((1, 2, 0, 3))?.contiguous()?;
        let queries = queries.reshape((kv_heads, group * rows, head_dim))?;
        let queries = (queries * (1.0 / (head_dim as f64).sqrt()))?;

        let device = queries.device();
        let mut max = Tensor::full(UNSEEN, (kv_heads, group * rows, 1), device)?;
        let mut sum = max.zeros_like()?;
        let mut values = queries.zeros_like()?;
        for start in self.seen(context, positions).step_by(positions) {
            let (keys, piece_values) = context.piece(start..start + positions)?;
            let scores = queries.matmul(&keys)?;
            let scores = scores.reshape((kv_heads, group, rows, positions))?;
            let scores = scores.broadcast_add(&self.mask(start, positions)?)?;
            let scores = scores.reshape((kv_heads, group * rows, positions))?;
            let new_max = max.maximum(&scores.max_keepdim(D::Minus1)?)?;
            let earlier = (max - &new_max)?.exp()?;
            let weights = scores.broadcast_sub(&new_max)?.exp()?;
            sum = ((sum * &earlier)? + weights.sum_keepdim(D::Minus1)?)?;
            values = (values.broadcast_mul(&earlier)? + weights.matmul(&piece_values)?)?;
            max = new_max;
        }
        let values = values.broadcast_div(&sum)?.reshape((kv_heads, group, rows, head_dim))?;
        values.permute((2, 0, 1, 3))?.reshape((rows, heads, head_dim))
    }

    /// The pieces that any row sees something of, from the start of the first to the end of the
    /// last.
    fn seen(&self, context: &Context, positions: usize) -> Range<usize> {
        let rows = self.queries.dims()[0] as isize;
        let last = (self.first_position + rows - 1).min(context.tokens as isize - 1);
        let first = self.window.map_or(0, |window| self.first_position - window as isize + 1);
        let first = first.max(0) as usize / positions * positions;
        first..(last as usize + 1).next_multiple_of(positions)
    }

    /// What is added to the scores of each row (`[rows, positions]`): nothing where it sees.
    fn mask(&self, start: usize, positions: usize) -> Result<Tensor> {
        let rows = self.queries.dims()[0];
        let mut mask = vec![UNSEEN; rows * positions];
        for (row, mask) in mask.chunks_exact_mut(positions).enumerate() {
            let position = self.first_position + row as isize;
            let first = self.window.map_or(0, |window| position - window as isize + 1);
            for (offset, mask) in mask.iter_mut().enumerate() {
                let seen = (start + offset) as isize;
                if (first..=position).contains(&seen) {
                    *mask = 0.0;
                }
            }
        }
        Tensor::from_vec(mask, (rows, positions), self.queries.device())
    }
}
