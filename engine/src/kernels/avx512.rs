//! Matrix products of bf16 weights by `vdpbf16ps`: each of 16 f32 lanes takes two products per
//! instruction, over 32 elements of the reduction at a time; then the lanes are added as a tree.
//!
//! Tiles keep their lanes in registers. Where rows are many, weights are brought beside each other in
//! the first cache, as much of the reduction as fits, and lanes wait in memory between the cuts: the
//! order of a sum is the same.

// Row and output numbers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::Compute;
use super::element::narrow_all;
use super::tile::{Output, Tile, prefetch};

const STEP: usize = 32;
const TILE_ROWS: usize = 3;
const TILE_OUTPUTS: usize = 8;

/// For fewer rows weights are not read often enough to be worth packing.
const PACKED_ROWS_MIN: usize = 16;

/// Elements of the reduction between two cuts at most: 8 rows of weights take 20 KiB of the first
/// cache.
const CUT_MAX: usize = 1280;
/// Rows of x whose elements stay in the second cache, by their bytes, and outputs that meet them there.
const NEAR_BYTES: usize = 448 << 10;
const NEAR_OUTPUTS: usize = 32;

/// The lanes of a row's sums.
type Lanes = [__m512; TILE_OUTPUTS];

/// Activations as these products take them.
pub fn to_bf16(compute: &Compute, values: &[f32]) -> Vec<bf16> {
    /// Fewer are done sooner than another thread is woken.
    const CHUNK: usize = 1 << 14;
    let mut rounded = vec![bf16::ZERO; values.len()];
    compute.split_chunks((values, CHUNK), (&mut rounded, CHUNK), narrow_all);
    rounded
}

/// Computes one tile; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`. Only for CPUs on which
/// `KernelPath::detect` found AVX-512 BF16.
pub fn tile(x: &[bf16], w: &[bf16], tile: Tile, y: &Output<'_>) {
    debug_assert!(is_x86_feature_detected!("avx512bf16"));
    assert!(x.len() >= tile.rows * tile.inputs && w.len() >= tile.outputs.end * tile.inputs);
    assert!(y.has(&tile), "a tile of y");
    // SAFETY: the kernel path was chosen by detecting these features; bounds asserted above.
    unsafe { tile_avx512(&Operands { x, w, inputs: tile.inputs, y }, &tile) }
}

struct Operands<'a> {
    x: &'a [bf16],
    w: &'a [bf16],
    inputs: usize,
    y: &'a Output<'a>,
}

/// What many rows need beside registers.
#[derive(Default)]
struct Scratch {
    /// Weights of a cut: `[steps, outputs]`.
    packed: Vec<__m512bh>,
    /// Of each row, between two cuts.
    lanes: Vec<Lanes>,
}

/// # Safety
/// The CPU has the features; the tile is within x, w and y.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_avx512(operands: &Operands<'_>, tile: &Tile) {
    let whole = tile.outputs.start + tile.outputs.len() / TILE_OUTPUTS * TILE_OUTPUTS;
    let near_rows = (NEAR_BYTES / (2 * tile.inputs)).max(1).next_multiple_of(TILE_ROWS);
    let mut scratch = Scratch::default();
    // SAFETY: all pieces are within the tile.
    unsafe {
        for near in (tile.outputs.start..whole).step_by(NEAR_OUTPUTS) {
            for first in (0..tile.rows).step_by(near_rows) {
                let rows = first..tile.rows.min(first + near_rows);
                for output in (near..whole.min(near + NEAR_OUTPUTS)).step_by(TILE_OUTPUTS) {
                    operands.columns::<TILE_OUTPUTS>(rows.clone(), output, &mut scratch);
                }
            }
        }
        for output in whole..tile.outputs.end {
            operands.columns::<1>(0..tile.rows, output, &mut scratch);
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
        rows: Range<usize>,
        output: usize,
        scratch: &mut Scratch,
    ) {
        // SAFETY: these rows and outputs are within x and w.
        unsafe {
            if rows.len() < PACKED_ROWS_MIN {
                let weights = Weights::Stored(self.w.as_ptr().add(output * self.inputs));
                return self.rows::<OUTPUTS>(rows, output, 0..self.inputs, weights, scratch);
            }
            let cuts = self.inputs.div_ceil(CUT_MAX);
            let cut = self.inputs.div_ceil(cuts).next_multiple_of(STEP);
            for start in (0..self.inputs).step_by(cut) {
                let k = start..self.inputs.min(start + cut);
                let mut packed = std::mem::take(&mut scratch.packed);
                self.pack::<OUTPUTS>(output, k.clone(), &mut packed);
                let weights = Weights::Packed(packed.as_ptr());
                self.rows::<OUTPUTS>(rows.clone(), output, k, weights, scratch);
                scratch.packed = packed;
            }
        }
    }

    /// Brings the weights of a cut beside each other.
    ///
    /// # Safety
    /// As `tile_avx512`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack<const OUTPUTS: usize>(
        &self,
        output: usize,
        k: Range<usize>,
        packed: &mut Vec<__m512bh>,
    ) {
        packed.clear();
        // SAFETY: these outputs are within w.
        let w = unsafe { self.w.as_ptr().add(output * self.inputs) };
        for at in k.clone().step_by(STEP) {
            for o in 0..OUTPUTS {
                prefetch(w.wrapping_add(OUTPUTS * self.inputs + at * OUTPUTS + o * STEP));
                // SAFETY: so many elements from `at` on lie within the row.
                packed.push(unsafe { load(w.add(o * self.inputs + at), k.end - at) });
            }
        }
    }

    /// Some of the reduction of some rows. Where it is the last, the sums go to y.
    ///
    /// # Safety
    /// As `tile_avx512`; `weights` are those of these outputs and this cut.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn rows<const OUTPUTS: usize>(
        &self,
        rows: Range<usize>,
        output: usize,
        k: Range<usize>,
        weights: Weights,
        scratch: &mut Scratch,
    ) {
        if k.start == 0 && k.end < self.inputs {
            scratch.lanes.clear();
            scratch.lanes.resize(rows.len(), [_mm512_setzero_ps(); TILE_OUTPUTS]);
        }
        let mut row = rows.start;
        while row < rows.end {
            let lanes = scratch.lanes.get_mut(row - rows.start..).unwrap_or_default();
            let at = (row, output);
            // SAFETY: the caller's promises.
            row += unsafe {
                match (rows.end - row, weights) {
                    (TILE_ROWS.., Weights::Packed(w)) => {
                        self.corner::<TILE_ROWS, OUTPUTS, true>(at, k.clone(), w.cast(), lanes)
                    }
                    (2, Weights::Packed(w)) => {
                        self.corner::<2, OUTPUTS, true>(at, k.clone(), w.cast(), lanes)
                    }
                    (_, Weights::Packed(w)) => {
                        self.corner::<1, OUTPUTS, true>(at, k.clone(), w.cast(), lanes)
                    }
                    (TILE_ROWS.., Weights::Stored(w)) => {
                        self.corner::<TILE_ROWS, OUTPUTS, false>(at, k.clone(), w, lanes)
                    }
                    (2, Weights::Stored(w)) => {
                        self.corner::<2, OUTPUTS, false>(at, k.clone(), w, lanes)
                    }
                    (_, Weights::Stored(w)) => {
                        self.corner::<1, OUTPUTS, false>(at, k.clone(), w, lanes)
                    }
                }
            };
        }
    }

    /// `ROWS` x `OUTPUTS` sums over some of the reduction, each in a register of its own: they begin
    /// with, and go to, `lanes`, but at the reduction's end to y. Returns `ROWS`.
    ///
    /// # Safety
    /// The CPU has the features; the rows and outputs at `(row, output)` are within x, w and y. `w`
    /// are the weights, `[steps, outputs]` where they are packed, else rows of `inputs` elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn corner<const ROWS: usize, const OUTPUTS: usize, const IS_PACKED: bool>(
        &self,
        (row, output): (usize, usize),
        k: Range<usize>,
        w: *const bf16,
        lanes: &mut [Lanes],
    ) -> usize {
        let inputs = self.inputs;
        let mut sums = [[_mm512_setzero_ps(); OUTPUTS]; ROWS];
        if k.start > 0 {
            for r in 0..ROWS {
                sums[r].copy_from_slice(&lanes[r][..OUTPUTS]);
            }
        }
        let mut step = |at: usize, left: usize| {
            for o in 0..OUTPUTS {
                // SAFETY: `left` elements from `at` on lie within each row, and packed steps are whole.
                unsafe {
                    let w = if IS_PACKED {
                        load(w.add((at - k.start) * OUTPUTS + o * STEP), STEP)
                    } else {
                        // Rows are too short for the CPU to see the next ones coming.
                        prefetch(w.wrapping_add(2 * OUTPUTS * inputs + at * OUTPUTS + o * STEP));
                        load(w.add(o * inputs + at), left)
                    };
                    for r in 0..ROWS {
                        let x = load(self.x.as_ptr().add((row + r) * inputs + at), left);
                        sums[r][o] = _mm512_dpbf16_ps(sums[r][o], x, w);
                    }
                }
            }
        };
        let whole = k.start + k.len() / STEP * STEP;
        for at in (k.start..whole).step_by(STEP) {
            step(at, STEP);
        }
        if whole < k.end {
            step(whole, k.end - whole);
        }
        for r in 0..ROWS {
            if k.end == inputs {
                let mut lanes = [_mm512_setzero_ps(); TILE_OUTPUTS];
                lanes[..OUTPUTS].copy_from_slice(&sums[r]);
                let sums = sum_registers(&lanes);
                // SAFETY: within y by the caller's promise, and this thread's alone.
                let y = unsafe { self.y.columns(row + r, output..output + OUTPUTS) };
                y.copy_from_slice(&sums[..OUTPUTS]);
            } else {
                lanes[r][..OUTPUTS].copy_from_slice(&sums[r]);
            }
        }
        ROWS
    }
}

/// Where weights are.
#[derive(Clone, Copy)]
enum Weights {
    /// As the model has them.
    Stored(*const bf16),
    /// See `Scratch::packed`.
    Packed(*const __m512bh),
}

/// Loads 32 elements, or `left` if that is less; the rest are zero.
///
/// # Safety
/// The CPU has AVX-512 BF16 and BW; so many elements may be read at `from`.
#[inline(always)]
unsafe fn load(from: *const bf16, left: usize) -> __m512bh {
    // SAFETY: within the caller's promise; the mask keeps the load within `left`. Both types are 512
    // bits without invalid patterns.
    unsafe {
        let bits = match left < STEP {
            false => _mm512_loadu_si512(from.cast()),
            true => _mm512_maskz_loadu_epi16((1u32 << left) - 1, from.cast()),
        };
        std::mem::transmute::<__m512i, __m512bh>(bits)
    }
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
