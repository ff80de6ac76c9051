//! Products of bf16 weights by `tdpbf16ps`. It takes 32 elements of the reduction at a time: those of
//! even numbers are added up, each by a fused multiplication, and those of odd numbers; both sums are
//! added, and added to what there is. Numbers too small for a normal f32 are zero.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::{InLines, ROW_BYTES, ROWS, Tiles, transposed};
use crate::kernels::Compute;
use crate::kernels::tile::{Output, Tile, prefetch, prefetch_near};

/// Elements of the reduction that a tile has.
const STEP: usize = 32;

/// So many steps ahead, weights are fetched into the first cache: from the second, a tile is slow.
const NEAR_STEPS: usize = 2;

/// Outputs of two tiles, which are computed together.
const OUTPUTS: usize = 2 * ROWS;

/// Rows of x that stay in the second cache, by their bytes, while weights pass.
const NEAR_BYTES: usize = 768 << 10;

/// Rows of x, as tiles.
pub struct PackedRows {
    rows: usize,
    steps: usize,
    /// Of each 16 rows (at the end fewer), `[steps, 16 pairs, rows]` pairs of elements; zeros where the
    /// reduction has ended.
    pairs: InLines<u32>,
}

/// 16 rows of x, or fewer.
#[derive(Clone, Copy)]
struct RowTiles<'a> {
    first: usize,
    rows: usize,
    pairs: &'a [u32],
}

impl PackedRows {
    /// Rounds `x` (`[rows, inputs]`), and brings it into tiles.
    pub fn new(compute: &Compute, x: &[f32], inputs: usize) -> Self {
        let (rows, steps) = (x.len() / inputs, inputs.div_ceil(STEP));
        let mut pairs = InLines::new(0, rows * steps * STEP / 2);
        compute.split_chunks(
            (x, ROWS * inputs),
            (pairs.get_mut(), ROWS * steps * STEP / 2),
            |x, pairs| pack(x, inputs, pairs),
        );
        Self { rows, steps, pairs }
    }

    fn tiles(&self, first: usize) -> RowTiles<'_> {
        let (rows, row_len) = (ROWS.min(self.rows - first), self.steps * STEP / 2);
        RowTiles { first, rows, pairs: &self.pairs.get()[first * row_len..][..rows * row_len] }
    }
}

fn pack(x: &[f32], inputs: usize, pairs: &mut [u32]) {
    let rows = x.len() / inputs;
    let mut rounded = vec![bf16::ZERO; inputs.next_multiple_of(STEP)];
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        crate::kernels::element::narrow_all(x, &mut rounded[..inputs]);
        for (to, pair) in pairs[row..].iter_mut().step_by(rows).zip(rounded.as_chunks::<2>().0) {
            *to = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        }
    }
}

/// Computes one tile (of outputs, in the sense of all kernels); `w` is `[outputs, inputs]`. Only for CPUs
/// on which `amx::is_available`.
pub fn tile(x: &PackedRows, w: &[bf16], tile: Tile, y: &Output<'_>) {
    let Tile { rows, inputs, .. } = tile;
    assert_eq!((x.rows, x.steps), (rows, inputs.div_ceil(STEP)), "x is [rows, inputs]");
    assert!(w.len() >= tile.outputs.end * inputs && y.has(&tile), "a tile of w and of y");
    let is_whole = inputs.is_multiple_of(STEP) && tile.outputs.len().is_multiple_of(ROWS);
    let to_pack = match rows {
        ..=ROWS if is_whole => 0,
        ..=ROWS => ROWS,
        _ => OUTPUTS,
    };
    let packed = InLines::new(bf16::ZERO, to_pack * inputs.next_multiple_of(STEP));
    let mut work = Work { x, w, tile, y, packed };
    // SAFETY: the path was chosen by detecting tiles and AVX-512; bounds are asserted above.
    unsafe {
        match rows {
            ..=ROWS => work.few_rows(),
            _ => work.many_rows(),
        }
    }
}

struct Work<'a> {
    x: &'a PackedRows,
    w: &'a [bf16],
    tile: Tile,
    y: &'a Output<'a>,
    /// Weights as tiles, `[tiles of outputs, steps, 16, 32]`, zeros where there are none.
    packed: InLines<bf16>,
}

/// Elements of a tile.
const TILE: usize = ROWS * STEP;

impl Work<'_> {
    /// 16 rows of x or fewer: weights pass once, and are taken as they are mapped.
    ///
    /// # Safety
    /// The CPU has tiles and AVX-512 BW; the tile is within w and y, whose columns nobody else has.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn few_rows(&mut self) {
        let Tile { outputs, inputs, .. } = self.tile.clone();
        let x = self.x.tiles(0);
        let _tiles = shape(x.rows);
        for output in outputs.clone().step_by(ROWS) {
            let outputs = output..outputs.end.min(output + ROWS);
            // Whole tiles; the rest is packed.
            let whole = if outputs.len() == ROWS { inputs / STEP } else { 0 };
            let mut sums = [0.0f32; ROWS * ROWS];
            // SAFETY: the caller's promises; mapped or packed weights and x have all steps.
            unsafe {
                asm!("tilezero tmm2", out("tmm2") _, options(nostack, nomem));
                let first = self.w.as_ptr().add(output * inputs);
                let behind = first.wrapping_add(2 * ROWS * inputs);
                for step in 0..whole {
                    let w = first.add(step * STEP);
                    for row in 0..ROWS {
                        prefetch(behind.wrapping_add(step * TILE + row * STEP));
                        prefetch_near(w.wrapping_add(row * inputs + NEAR_STEPS * STEP));
                    }
                    few_rows_step(w, 2 * inputs, x, step);
                }
                if whole * STEP < inputs {
                    self.pack(outputs.clone(), whole * STEP..inputs, 0);
                    for step in whole..self.x.steps {
                        let w = self.packed.get().as_ptr().add((step - whole) * TILE);
                        few_rows_step(w, ROW_BYTES, x, step);
                    }
                }
                asm!("tilestored [{sums} + {last}*1], tmm2", sums = in(reg) sums.as_mut_ptr(),
                     last = in(reg) 4 * x.rows, options(nostack));
                put(&sums, x, self.y, outputs);
            }
        }
    }

    /// More rows: 32 outputs meet 32 rows at a time.
    ///
    /// # Safety
    /// As `few_rows`.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn many_rows(&mut self) {
        let Tile { rows, outputs, inputs } = self.tile.clone();
        let near_rows = (NEAR_BYTES / (2 * inputs)).max(1).next_multiple_of(2 * ROWS);
        for first in (0..rows).step_by(near_rows) {
            let near = first..rows.min(first + near_rows);
            let whole = near.start..near.start + near.len() / (2 * ROWS) * (2 * ROWS);
            let parts = [whole.clone(), whole.end..near.end];
            for rows in parts.into_iter().filter(|rows| !rows.is_empty()) {
                let last = self.x.tiles(rows.start + (rows.len() - 1) / ROWS * ROWS);
                let _tiles = shape(last.rows);
                for output in outputs.clone().step_by(OUTPUTS) {
                    let outputs = output..outputs.end.min(output + OUTPUTS);
                    for half in 0..2 {
                        let from = outputs.end.min(output + half * ROWS);
                        let to = outputs.end.min(from + ROWS);
                        // SAFETY: the caller's promises.
                        unsafe { self.pack(from..to, 0..inputs, half) };
                    }
                    for row in rows.clone().step_by(2 * ROWS) {
                        let one = self.x.tiles(row);
                        let other = (row + ROWS < rows.end).then(|| self.x.tiles(row + ROWS));
                        // SAFETY: the caller's promises; tiles are shaped for these rows.
                        unsafe { self.multiply(one, other, outputs.clone()) };
                    }
                }
            }
        }
    }

    /// Brings weights of up to 16 outputs, some of the reduction, into the tiles `at`, row by row: so
    /// memory is read in order, which the CPU sees coming.
    ///
    /// # Safety
    /// The CPU has AVX-512 BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack(&mut self, outputs: Range<usize>, k: Range<usize>, at: usize) {
        let (inputs, steps) = (self.tile.inputs, k.len().div_ceil(STEP));
        let packed = &mut self.packed.get_mut()[at * steps * TILE..][..steps * TILE];
        if outputs.len() < ROWS {
            packed.fill(bf16::ZERO);
        }
        let last = k.len() - (steps - 1) * STEP;
        let mask = u32::MAX >> (STEP - last);
        for (row, output) in outputs.enumerate() {
            let w = &self.w[output * inputs..][k.clone()];
            // SAFETY: steps are within the row, the last as far as the mask goes; tiles within `packed`.
            unsafe {
                let (mut from, mut to) = (w.as_ptr(), packed.as_mut_ptr().add(row * STEP));
                for _ in 1..steps {
                    _mm512_storeu_si512(to.cast(), _mm512_loadu_si512(from.cast()));
                    (from, to) = (from.add(STEP), to.add(TILE));
                }
                _mm512_storeu_si512(to.cast(), _mm512_maskz_loadu_epi16(mask, from.cast()));
            }
        }
    }

    /// Up to 32 rows of x with the packed weights; the sums go to y.
    ///
    /// # Safety
    /// As `few_rows`; tiles have the shapes for these rows, and `outputs` are packed.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply(
        &self,
        one: RowTiles<'_>,
        other: Option<RowTiles<'_>>,
        outputs: Range<usize>,
    ) {
        let steps = self.x.steps;
        let packed = self.packed.get();
        let (w0, w1) = (packed.as_ptr(), packed[steps * TILE..].as_ptr());
        let mut sums = [[0.0f32; ROWS * ROWS]; 4];
        // SAFETY: the caller's promises: steps lie within weights and x; sums are as large as tiles.
        unsafe {
            let [s0, s1, s2, s3] = sums.each_mut().map(|sums| sums.as_mut_ptr());
            if let Some(other) = other {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                     out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                     options(nostack, nomem));
                for step in 0..steps {
                    let pair = step * STEP / 2;
                    asm!("tileloadd tmm4, [{w0} + {full}*1]",
                         "tileloadd tmm6, [{x0} + {full}*1]",
                         "tdpbf16ps tmm0, tmm4, tmm6",
                         "tileloadd tmm7, [{x1} + {last}*1]",
                         "tdpbf16ps tmm2, tmm4, tmm7",
                         "tileloadd tmm5, [{w1} + {full}*1]",
                         "tdpbf16ps tmm1, tmm5, tmm6",
                         "tdpbf16ps tmm3, tmm5, tmm7",
                         w0 = in(reg) w0.add(step * TILE), w1 = in(reg) w1.add(step * TILE),
                         x0 = in(reg) one.pairs.as_ptr().add(pair * ROWS),
                         x1 = in(reg) other.pairs.as_ptr().add(pair * other.rows),
                         full = in(reg) ROW_BYTES, last = in(reg) 4 * other.rows,
                         out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                         out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                         options(nostack, readonly));
                }
                asm!("tilestored [{s0} + {full}*1], tmm0", "tilestored [{s1} + {full}*1], tmm1",
                     "tilestored [{s2} + {last}*1], tmm2", "tilestored [{s3} + {last}*1], tmm3",
                     s0 = in(reg) s0, s1 = in(reg) s1, s2 = in(reg) s2, s3 = in(reg) s3,
                     full = in(reg) ROW_BYTES, last = in(reg) 4 * other.rows, options(nostack));
            } else {
                asm!("tilezero tmm2", "tilezero tmm3", out("tmm2") _, out("tmm3") _,
                     options(nostack, nomem));
                for step in 0..steps {
                    asm!("tileloadd tmm7, [{x} + {last}*1]",
                         "tileloadd tmm4, [{w0} + {full}*1]",
                         "tdpbf16ps tmm2, tmm4, tmm7",
                         "tileloadd tmm5, [{w1} + {full}*1]",
                         "tdpbf16ps tmm3, tmm5, tmm7",
                         w0 = in(reg) w0.add(step * TILE), w1 = in(reg) w1.add(step * TILE),
                         x = in(reg) one.pairs.as_ptr().add(step * STEP / 2 * one.rows),
                         full = in(reg) ROW_BYTES, last = in(reg) 4 * one.rows,
                         out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                         out("tmm7") _, options(nostack, readonly));
                }
                asm!("tilestored [{s0} + {last}*1], tmm2", "tilestored [{s1} + {last}*1], tmm3",
                     s0 = in(reg) s0, s1 = in(reg) s1, last = in(reg) 4 * one.rows,
                     options(nostack));
            }
            for (rows, sums) in [Some(one), other].into_iter().flatten().zip(sums.chunks_exact(2)) {
                for (half, sums) in sums.iter().enumerate() {
                    let from = outputs.end.min(outputs.start + half * ROWS);
                    put(sums, rows, self.y, from..outputs.end.min(from + ROWS));
                }
            }
        }
    }
}

/// Adds the products of a tile of weights, whose rows are so many bytes apart, to those in tile 2.
///
/// # Safety
/// The CPU has tiles, shaped for `x`, which has this step; 16 rows of a step may be read at `w`.
#[inline(always)]
unsafe fn few_rows_step(w: *const bf16, row_bytes: usize, x: RowTiles<'_>, step: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        asm!("tileloadd tmm4, [{w} + {row_bytes}*1]",
             "tileloadd tmm7, [{x} + {x_bytes}*1]",
             "tdpbf16ps tmm2, tmm4, tmm7",
             w = in(reg) w, row_bytes = in(reg) row_bytes,
             x = in(reg) x.pairs.as_ptr().add(step * STEP / 2 * x.rows),
             x_bytes = in(reg) 4 * x.rows,
             out("tmm2") _, out("tmm4") _, out("tmm7") _, options(nostack, readonly));
    }
}

/// Sums of 16 outputs and 16 rows in tiles 0 and 1, of as many outputs and the last rows in 2 and 3;
/// weights in 4 and 5; x in 6, its last rows in 7.
fn shape(last_rows: usize) -> Tiles {
    let (full, last) = ((ROWS, ROW_BYTES), (ROWS, 4 * last_rows));
    Tiles::shape([full, full, last, last, full, full, full, last])
}

/// Writes sums of outputs (`[16, rows]`) to y.
///
/// # Safety
/// The CPU has AVX-512. Rows and outputs, at most 16, are within y, and nobody else has them.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn put(
    sums: &[f32; ROWS * ROWS],
    rows: RowTiles<'_>,
    y: &Output<'_>,
    outputs: Range<usize>,
) {
    let turned = match rows.rows {
        1 => *sums,
        ROWS => transposed(sums),
        count => {
            let mut turned = [0.0; ROWS * ROWS];
            for (output, sums) in sums.chunks_exact(count).take(outputs.len()).enumerate() {
                for (row, sum) in sums.iter().enumerate() {
                    turned[row * ROWS + output] = *sum;
                }
            }
            turned
        }
    };
    for (row, sums) in turned.chunks_exact(ROWS).take(rows.rows).enumerate() {
        // SAFETY: the caller's promises.
        let y = unsafe { y.columns(rows.first + row, outputs.clone()) };
        y.copy_from_slice(&sums[..outputs.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{KernelPath, Matrix, WeightData, matmul};

    /// What `tdpbf16ps` is defined to compute, of numbers that have no small products.
    fn reference(x: &[f32], w: &[bf16]) -> f32 {
        let mut sum = 0.0;
        for (x, w) in x.chunks(STEP).zip(w.chunks(STEP)) {
            let mut halves = [0.0f32; 2];
            for (index, (x, w)) in x.iter().zip(w).enumerate() {
                let half = &mut halves[index % 2];
                *half = bf16::from_f32(*x).to_f32().mul_add(w.to_f32(), *half);
            }
            sum += halves[0] + halves[1];
        }
        sum
    }

    #[test]
    fn products_are_the_bits_that_they_are_defined_to_be() {
        if !KernelPath::AmxBf16.is_available() {
            println!("this CPU has no AMX");
            return;
        }
        let compute = Compute::new(2, KernelPath::AmxBf16).unwrap();
        for (rows, outputs, inputs) in
            [(1, 32, 32), (1, 7, 100), (2, 48, 64), (16, 33, 896), (17, 64, 40), (77, 70, 300)]
        {
            let number = |index: usize| (index * 7919 % 1009) as f32 / 512.0 - 1.0 + 1e-3;
            let x: Vec<f32> = (0..rows * inputs).map(number).collect();
            let w: Vec<bf16> =
                (0..outputs * inputs).map(|index| bf16::from_f32(number(index + 3))).collect();
            let weight = Matrix { data: WeightData::Bf16(&w), outputs, inputs };
            let mut y = vec![f32::NAN; rows * outputs];
            matmul(&compute, &x, &weight, &mut y);
            for (index, found) in y.iter().enumerate() {
                let (row, output) = (index / outputs, index % outputs);
                let (x, w) = (&x[row * inputs..][..inputs], &w[output * inputs..][..inputs]);
                let expected = reference(x, w);
                assert_eq!(found.to_bits(), expected.to_bits(), "[{rows}, {outputs}, {inputs}]");
            }
        }
    }
}
