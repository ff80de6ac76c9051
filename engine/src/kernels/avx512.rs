//! Matrix products of bf16 weights by `vdpbf16ps`: each of 16 f32 lanes takes two products per
//! instruction, over 32 elements of the reduction at a time; then the lanes are added as a tree.
//!
//! Tiles keep their lanes in registers. Where the reduction is long and rows are many, it is cut so
//! that the pieces of weights stay in the first cache, and lanes wait in memory between the cuts:
//! the order of a sum is the same.

// Row and output numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use half::bf16;

use super::tile::{Output, Tile};

const STEP: usize = 32;
const TILE_ROWS: usize = 3;
const TILE_OUTPUTS: usize = 8;

/// Elements of the reduction between two cuts: 8 rows of weights take 16 KiB of the first cache.
const CUT: usize = 1024;
/// Rows of x, and outputs, whose elements stay in the second cache.
const NEAR_ROWS: usize = 48;
const NEAR_OUTPUTS: usize = 32;

/// The lanes of a row's sums.
type Lanes = [__m512; TILE_OUTPUTS];

/// Computes one tile; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`. Only for CPUs on which
/// `KernelPath::detect` found AVX-512 BF16.
pub fn tile(x: &[bf16], w: &[bf16], tile: Tile, y: &Output<'_>) {
    debug_assert!(is_x86_feature_detected!("avx512bf16"));
    assert!(x.len() >= tile.rows * tile.inputs && w.len() >= tile.outputs.end * tile.inputs);
    // SAFETY: the kernel path was chosen by detecting these features; bounds asserted above.
    unsafe { tile_avx512(&Operands { x, w, inputs: tile.inputs, y }, &tile) }
}

struct Operands<'a> {
    x: &'a [bf16],
    w: &'a [bf16],
    inputs: usize,
    y: &'a Output<'a>,
}

/// # Safety
/// The CPU has the features; the tile is within x, w and y.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_avx512(operands: &Operands<'_>, tile: &Tile) {
    let whole = tile.outputs.start + tile.outputs.len() / TILE_OUTPUTS * TILE_OUTPUTS;
    let mut lanes = Vec::new();
    // SAFETY: all pieces are within the tile.
    unsafe {
        for near in (tile.outputs.start..whole).step_by(NEAR_OUTPUTS) {
            for first in (0..tile.rows).step_by(NEAR_ROWS) {
                let rows = first..tile.rows.min(first + NEAR_ROWS);
                for output in (near..whole.min(near + NEAR_OUTPUTS)).step_by(TILE_OUTPUTS) {
                    operands.columns::<TILE_OUTPUTS>(rows.clone(), output, &mut lanes);
                }
            }
        }
        for output in whole..tile.outputs.end {
            operands.columns::<1>(0..tile.rows, output, &mut lanes);
        }
    }
}

impl Operands<'_> {
    /// Some rows with `OUTPUTS` outputs.
    ///
    /// # Safety
    /// As `tile_avx512`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn columns<const OUTPUTS: usize>(
        &self,
        rows: std::ops::Range<usize>,
        output: usize,
        lanes: &mut Vec<Lanes>,
    ) {
        lanes.clear();
        lanes.resize(rows.len(), [_mm512_setzero_ps(); TILE_OUTPUTS]);
        let cut = if rows.len() <= TILE_ROWS { self.inputs } else { CUT };
        for start in (0..self.inputs).step_by(cut) {
            let k = start..self.inputs.min(start + cut);
            let mut row = rows.start;
            while row < rows.end {
                let at = (row, output);
                let lanes = &mut lanes[row - rows.start..];
                // SAFETY: these rows and outputs are within x and w.
                row += unsafe {
                    match rows.end - row {
                        TILE_ROWS.. => self.corner::<TILE_ROWS, OUTPUTS>(at, k.clone(), lanes),
                        2 => self.corner::<2, OUTPUTS>(at, k.clone(), lanes),
                        _ => self.corner::<1, OUTPUTS>(at, k.clone(), lanes),
                    }
                };
            }
        }
        for (row, lanes) in rows.zip(lanes) {
            let sums = sum_registers(lanes);
            // SAFETY: within y by the caller's promise, and this thread's alone.
            unsafe { self.y.set_columns(row, output, &sums[..OUTPUTS]) };
        }
    }

    /// `ROWS` x `OUTPUTS` sums go on over some of the reduction, each in a register of its own. Returns
    /// `ROWS`.
    ///
    /// # Safety
    /// The CPU has the features; the rows and outputs at `(row, output)` are within x and w.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn corner<const ROWS: usize, const OUTPUTS: usize>(
        &self,
        (row, output): (usize, usize),
        k: std::ops::Range<usize>,
        lanes: &mut [Lanes],
    ) -> usize {
        let Self { inputs, .. } = *self;
        // SAFETY: within x and w.
        let (x, w) =
            unsafe { (self.x.as_ptr().add(row * inputs), self.w.as_ptr().add(output * inputs)) };
        let mut sums: [[__m512; OUTPUTS]; ROWS] =
            std::array::from_fn(|r| std::array::from_fn(|o| lanes[r][o]));
        let whole = k.start + k.len() / STEP * STEP;
        for k in (k.start..whole).step_by(STEP) {
            // SAFETY: 32 elements from k on lie within each row.
            let load = |base: *const bf16, row: usize| unsafe {
                as_bf16(_mm512_loadu_si512(base.add(row * inputs + k).cast()))
            };
            let x: [__m512bh; ROWS] = std::array::from_fn(|r| load(x, r));
            for o in 0..OUTPUTS {
                prefetch(w.wrapping_add(2 * OUTPUTS * inputs + k * OUTPUTS + o * STEP));
                let w = load(w, o);
                for r in 0..ROWS {
                    sums[r][o] = _mm512_dpbf16_ps(sums[r][o], x[r], w);
                }
            }
        }
        if whole < k.end {
            let mask = (1u32 << (k.end - whole)) - 1;
            // SAFETY: the mask keeps the load within the row.
            let load = |base: *const bf16, row: usize| unsafe {
                as_bf16(_mm512_maskz_loadu_epi16(mask, base.add(row * inputs + whole).cast()))
            };
            for r in 0..ROWS {
                for o in 0..OUTPUTS {
                    sums[r][o] = _mm512_dpbf16_ps(sums[r][o], load(x, r), load(w, o));
                }
            }
        }
        for r in 0..ROWS {
            lanes[r][..OUTPUTS].copy_from_slice(&sums[r]);
        }
        ROWS
    }
}

/// The next outputs' weights come after these: rows are too short for the CPU to see them coming.
#[inline(always)]
fn prefetch(weights: *const bf16) {
    // SAFETY: a hint, which touches nothing wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(weights.cast()) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid patterns.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// The sum of each register's lanes, as `math::sum_lanes` adds them.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_registers(lanes: &Lanes) -> [f32; TILE_OUTPUTS] {
    // Lanes 8 apart: two sums of 8 lanes in each register.
    let eight = |a, b| {
        let (low, high) = (_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        _mm512_add_ps(low, high)
    };
    // Lanes 4 apart: four sums of 4 lanes.
    let four = |a, b| {
        let (low, high) = (_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        _mm512_add_ps(low, high)
    };
    let [a, b, c, d, e, f, g, h] = *lanes;
    let first = four(eight(a, b), eight(c, d));
    let second = four(eight(e, f), eight(g, h));
    // Lanes 2 apart, then neighbours.
    let low = _mm512_shuffle_ps(first, second, 0x44);
    let two = _mm512_add_ps(low, _mm512_shuffle_ps(first, second, 0xee));
    let one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    let mut sums = [0.0; 16];
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), one) };
    std::array::from_fn(|index| sums[index % 4 * 4 + index / 4 * 2])
}
