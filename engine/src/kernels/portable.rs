//! Matrix products in plain f32 arithmetic, vectorised by the compiler. Multiplications and
//! additions are never fused, so that every CPU gives the same result.

// Row and output numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use multiversion::multiversion;

use super::Element;
use super::math::{LANES, sum_lanes};
use super::tile::{Output, Tile};

const TILE_ROWS: usize = 4;
const TILE_OUTPUTS: usize = 4;

/// Computes one tile; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
pub fn tile<E: Element>(x: &[f32], w: &[E], tile: Tile, y: &Output<'_>) {
    let mut output = tile.outputs.start;
    while output < tile.outputs.end {
        let full = output + TILE_OUTPUTS <= tile.outputs.end;
        let mut row = 0;
        while row < tile.rows {
            let at = (row, output);
            row += match (full, row + TILE_ROWS <= tile.rows) {
                (true, true) => corner::<E, TILE_ROWS, TILE_OUTPUTS>(x, w, at, tile.inputs, y),
                (true, false) => corner::<E, 1, TILE_OUTPUTS>(x, w, at, tile.inputs, y),
                (false, _) => corner::<E, 1, 1>(x, w, at, tile.inputs, y),
            };
        }
        output += if full { TILE_OUTPUTS } else { 1 };
    }
}

/// `ROWS` x `OUTPUTS` elements at once, each with lanes of its own: the tile's shape changes how
/// often memory is read and never the order of a sum. Returns `ROWS`.
#[inline(always)]
fn corner<E: Element, const ROWS: usize, const OUTPUTS: usize>(
    x: &[f32],
    w: &[E],
    (row, output): (usize, usize),
    inputs: usize,
    y: &Output<'_>,
) -> usize {
    let x: [&[f32]; ROWS] = std::array::from_fn(|r| &x[(row + r) * inputs..][..inputs]);
    let w: [&[E]; OUTPUTS] = std::array::from_fn(|o| &w[(output + o) * inputs..][..inputs]);
    let mut lanes = [[[0.0f32; LANES]; OUTPUTS]; ROWS];
    let whole = inputs / LANES * LANES;
    let mut k = 0;
    while k < whole {
        for o in 0..OUTPUTS {
            let w: [f32; LANES] = std::array::from_fn(|lane| w[o][k + lane].widen());
            for r in 0..ROWS {
                for lane in 0..LANES {
                    lanes[r][o][lane] += x[r][k + lane] * w[lane];
                }
            }
        }
        k += LANES;
    }
    for k in whole..inputs {
        for o in 0..OUTPUTS {
            for r in 0..ROWS {
                lanes[r][o][k - whole] += x[r][k] * w[o][k].widen();
            }
        }
    }
    for r in 0..ROWS {
        for o in 0..OUTPUTS {
            // SAFETY: the caller's tile lies within y and belongs to this thread alone.
            unsafe { y.set(row + r, output + o, sum_lanes(lanes[r][o])) };
        }
    }
    ROWS
}
