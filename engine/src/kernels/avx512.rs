//! Matrix products of bf16 weights by `vdpbf16ps`: each of 16 f32 lanes takes two products per
//! instruction, over 32 elements of the reduction at a time.

// Row and output numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi16,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::math::{LANES, sum_lanes};
use super::tile::{Output, Tile};

const STEP: usize = 32;
const TILE_ROWS: usize = 4;
const TILE_OUTPUTS: usize = 4;
/// With one row there is nothing to reuse but latency to hide: more weight rows at once.
const WIDE_OUTPUTS: usize = 8;

/// Computes one tile; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`. Only for CPUs on which
/// `KernelPath::detect` found AVX-512 BF16.
pub fn tile(x: &[bf16], w: &[bf16], tile: Tile, y: &Output<'_>) {
    debug_assert!(is_x86_feature_detected!("avx512bf16"));
    assert!(x.len() >= tile.rows * tile.inputs && w.len() >= tile.outputs.end * tile.inputs);
    // SAFETY: the kernel path was chosen by detecting these features; bounds asserted above.
    unsafe { tile_avx512(x, w, tile, y) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_avx512(x: &[bf16], w: &[bf16], tile: Tile, y: &Output<'_>) {
    let mut output = tile.outputs.start;
    while output < tile.outputs.end {
        let left = tile.outputs.end - output;
        let wide = tile.rows < TILE_ROWS && left >= WIDE_OUTPUTS;
        let mut row = 0;
        while row < tile.rows {
            let at = (row, output);
            let rows_left = tile.rows - row;
            // SAFETY: each corner lies within the tile.
            row += unsafe {
                match (left >= TILE_OUTPUTS, rows_left >= TILE_ROWS) {
                    _ if wide => corner::<1, WIDE_OUTPUTS>(x, w, at, tile.inputs, y),
                    (true, true) => corner::<TILE_ROWS, TILE_OUTPUTS>(x, w, at, tile.inputs, y),
                    (true, false) => corner::<1, TILE_OUTPUTS>(x, w, at, tile.inputs, y),
                    (false, _) => corner::<1, 1>(x, w, at, tile.inputs, y),
                }
            };
        }
        output += match (wide, left >= TILE_OUTPUTS) {
            (true, _) => WIDE_OUTPUTS,
            (false, true) => TILE_OUTPUTS,
            (false, false) => 1,
        };
    }
}

/// `ROWS` x `OUTPUTS` elements at once, each in a register of its own. Returns `ROWS`.
///
/// # Safety
/// The CPU has the features; the rows and outputs at `(row, output)` are within x, w and y.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn corner<const ROWS: usize, const OUTPUTS: usize>(
    x: &[bf16],
    w: &[bf16],
    (row, output): (usize, usize),
    inputs: usize,
    y: &Output<'_>,
) -> usize {
    let mut sums = [[_mm512_setzero_ps(); OUTPUTS]; ROWS];
    let mut k = 0;
    while k < inputs {
        let count = STEP.min(inputs - k);
        // SAFETY: `count` elements from k on lie within each row.
        let load = |base: &[bf16], row: usize| unsafe {
            load_bf16(base.as_ptr().add(row * inputs + k), count)
        };
        let x: [__m512bh; ROWS] = std::array::from_fn(|r| load(x, row + r));
        for o in 0..OUTPUTS {
            let w = load(w, output + o);
            for r in 0..ROWS {
                sums[r][o] = _mm512_dpbf16_ps(sums[r][o], x[r], w);
            }
        }
        k += STEP;
    }
    for r in 0..ROWS {
        for o in 0..OUTPUTS {
            // SAFETY: within y by the caller's promise, and this thread's alone.
            unsafe { y.set(row + r, output + o, sum_register(sums[r][o])) };
        }
    }
    ROWS
}

/// Loads `count` (at most 32) elements; the rest are zero.
///
/// # Safety
/// `count` elements may be read at `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn load_bf16(from: *const bf16, count: usize) -> __m512bh {
    let bits: __m512i = if count == STEP {
        // SAFETY: 32 elements of 2 bytes are readable by the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    } else {
        // SAFETY: the mask keeps the load within `count` elements.
        unsafe { _mm512_maskz_loadu_epi16((1u32 << count) - 1, from.cast()) }
    };
    // SAFETY: both are 512 bits without invalid patterns.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sum_register(register: __m512) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the array holds the 16 floats of a register.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), register) };
    sum_lanes(lanes)
}
