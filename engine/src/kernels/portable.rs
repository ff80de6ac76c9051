//! Matrix products of weights widened to f32, on every CPU: sixteen lanes of sums, each element in the
//! lane of its number, added as a tree at the end.

// Row and output numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::Element;
use super::math::{LANES, sum_lanes};
use super::simd::{self, Simd, Work, lanes_at};
use super::tile::{Output, Tile, prefetch};

/// Rows are computed together by fours, with four outputs, where there are registers for it; else by
/// threes with two. A row alone takes more outputs.
const WIDE: (usize, usize, usize) = (4, 4, 8);
const NARROW: (usize, usize, usize) = (3, 2, 4);

/// Computes one tile; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`.
pub fn tile<E: Element>(x: &[f32], w: &[E], tile: Tile, y: &Output<'_>) {
    assert!(x.len() >= tile.rows * tile.inputs && w.len() >= tile.outputs.end * tile.inputs);
    assert!(y.has(&tile), "a tile of y");
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
            // SAFETY: chunks of whole rows.
            let x: [S::Lanes; ROWS] =
                std::array::from_fn(|r| simd.load(unsafe { lanes_at(x[r], k) }));
            for o in 0..OUTPUTS {
                // The next outputs' weights come after these: rows are too short for the CPU to see
                // them coming.
                prefetch(
                    w[0].as_ptr().wrapping_add(2 * OUTPUTS * inputs + k * OUTPUTS + o * LANES),
                );
                // SAFETY: as above.
                let w = E::load(simd, unsafe { lanes_at(w[o], k) });
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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::kernels::simd::Plain;
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::simd::x86::{Avx2, Avx512};

    /// On one instruction set.
    fn product<E: Element>(simd: impl Simd, x: &[f32], w: &[E], tile: &Tile) -> Vec<f32> {
        let mut y = vec![f32::NAN; tile.rows * tile.outputs.end];
        let output = Output::new(&mut y, tile.outputs.end);
        simd.run(Product { x, w, tile: tile.clone(), y: &output });
        y
    }

    fn check<E: Element>(rows: usize, outputs: usize, inputs: usize) {
        let number = |seed: usize, k: usize| ((k * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        let x: Vec<f32> = (0..rows * inputs).map(|k| number(1, k)).collect();
        let w: Vec<E> = (0..outputs * inputs).map(|k| E::narrow(number(2, k))).collect();
        let tile = Tile { rows, outputs: 0..outputs, inputs };
        let plain = product(Plain, &x, &w, &tile);
        for (index, found) in plain.iter().enumerate() {
            let (row, output) = (index / outputs, index % outputs);
            let term = |k: usize| {
                f64::from(x[row * inputs + k]) * f64::from(w[output * inputs + k].widen())
            };
            let expected: f64 = (0..inputs).map(term).sum();
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected}");
        }
        #[cfg(target_arch = "x86_64")]
        {
            let shape = [rows, outputs, inputs];
            if let Some(simd) = Avx2::detect() {
                assert_eq!(product(simd, &x, &w, &tile), plain, "AVX2, {shape:?}");
            }
            if let Some(simd) = Avx512::detect() {
                assert_eq!(product(simd, &x, &w, &tile), plain, "AVX-512, {shape:?}");
            }
        }
    }

    #[test]
    fn products_are_right_and_the_same_on_every_instruction_set() {
        for (rows, outputs, inputs) in
            [(1, 1, 1), (1, 37, 100), (2, 9, 48), (3, 5, 31), (14, 11, 80)]
        {
            check::<f32>(rows, outputs, inputs);
            check::<bf16>(rows, outputs, inputs);
            check::<f16>(rows, outputs, inputs);
        }
    }
}
