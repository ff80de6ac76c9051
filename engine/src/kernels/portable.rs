//! Matrix products of weights widened to f32, on every CPU: sixteen lanes of sums, each element in the
//! lane of its number, added as a tree at the end.

// Row and output numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::Element;
use super::math::{LANES, sum_lanes};
use super::simd::{self, Simd, Work};
use super::tile::{Output, Tile, prefetch};

/// Rows are computed together by fours, with four outputs, where there are registers for it; else by
/// threes with two. A row alone takes more outputs.
const WIDE: (usize, usize, usize) = (4, 4, 8);
const NARROW: (usize, usize, usize) = (3, 2, 4);

/// Computes one tile; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`.
pub fn tile<E: Element>(x: &[f32], w: &[E], tile: Tile, y: &Output<'_>) {
    assert!(x.len() >= tile.rows * tile.inputs && w.len() >= tile.outputs.end * tile.inputs);
    simd::run(Product { x, w, tile, y });
}

struct Product<'a, E> {
    x: &'a [f32],
    w: &'a [E],
    tile: Tile,
    y: &'a Output<'a>,
}

impl<E: Element> Work for Product<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.tile.rows;
        if S::IS_WIDE {
            match rows < WIDE.0 {
                true => self.columns::<S, 1, { WIDE.2 }>(simd),
                false => self.columns::<S, { WIDE.0 }, { WIDE.1 }>(simd),
            }
        } else {
            match rows < NARROW.0 {
                true => self.columns::<S, 1, { NARROW.2 }>(simd),
                false => self.columns::<S, { NARROW.0 }, { NARROW.1 }>(simd),
            }
        }
    }
}

impl<E: Element> Product<'_, E> {
    /// All outputs, so many at a time, for all rows, so many at a time.
    #[inline(always)]
    fn columns<S: Simd, const ROWS: usize, const OUTPUTS: usize>(&self, simd: S) {
        let Tile { rows, outputs, .. } = &self.tile;
        let mut output = outputs.start;
        while output < outputs.end {
            let is_whole = output + OUTPUTS <= outputs.end;
            let mut row = 0;
            while row < *rows {
                row += match (is_whole, row + ROWS <= *rows) {
                    (true, true) => self.corner::<S, ROWS, OUTPUTS>(simd, row, output),
                    (true, false) => self.corner::<S, 1, OUTPUTS>(simd, row, output),
                    (false, true) => self.corner::<S, ROWS, 1>(simd, row, output),
                    (false, false) => self.corner::<S, 1, 1>(simd, row, output),
                };
            }
            output += if is_whole { OUTPUTS } else { 1 };
        }
    }

    /// `ROWS` x `OUTPUTS` elements at once, each with lanes of its own: the tile's shape changes how
    /// often memory is read and never the order of a sum. Returns `ROWS`.
    #[inline(always)]
    fn corner<S: Simd, const ROWS: usize, const OUTPUTS: usize>(
        &self,
        simd: S,
        row: usize,
        output: usize,
    ) -> usize {
        let inputs = self.tile.inputs;
        let x: [&[f32]; ROWS] = std::array::from_fn(|r| &self.x[(row + r) * inputs..][..inputs]);
        let w: [&[E]; OUTPUTS] =
            std::array::from_fn(|o| &self.w[(output + o) * inputs..][..inputs]);
        let mut sums = [[simd.splat(0.0); OUTPUTS]; ROWS];
        for chunk in 0..inputs / LANES {
            let k = chunk * LANES;
            let x: [S::Lanes; ROWS] = std::array::from_fn(|r| simd.load(lanes_at(x[r], k)));
            for o in 0..OUTPUTS {
                // The next outputs' weights come after these: rows are too short for the CPU to see
                // them coming.
                prefetch(
                    w[0].as_ptr().wrapping_add(2 * OUTPUTS * inputs + k * OUTPUTS + o * LANES),
                );
                let w = E::load(simd, lanes_at(w[o], k));
                for r in 0..ROWS {
                    sums[r][o] = simd.mul_add(x[r], w, sums[r][o]);
                }
            }
        }
        let whole = inputs / LANES * LANES;
        for r in 0..ROWS {
            for o in 0..OUTPUTS {
                let mut lanes = [0.0; LANES];
                simd.store(sums[r][o], &mut lanes);
                for k in whole..inputs {
                    let lane = &mut lanes[k - whole];
                    *lane = x[r][k].mul_add(w[o][k].widen(), *lane);
                }
                // SAFETY: the caller's tile lies within y and belongs to this thread alone.
                unsafe { self.y.set(row + r, output + o, sum_lanes(lanes)) };
            }
        }
        ROWS
    }
}

#[inline(always)]
fn lanes_at<T>(row: &[T], k: usize) -> &[T; LANES] {
    debug_assert!(k + LANES <= row.len());
    // SAFETY: whole chunks of the row.
    unsafe { &*row.as_ptr().add(k).cast() }
}
