//! Panels against activations on AVX2: each of 8 lanes is an output, and takes four products by two
//! instructions, the first of which multiplies without signs.

// Numbers of rows and halves index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::activations::ActivationTile;
use super::panel::{PanelGroup, PanelRows};
use super::unpack::{self, Unpack};
use super::{GROUP, OUTPUTS, QuantFormat};

/// Rows that there are registers for.
const ROWS_MAX: usize = 2;

/// Unpacks a whole panel, for CPUs on which `QuantizedPath::detect` found AVX2.
pub fn put_down(panel: PanelRows<'_>, to: &mut [PanelGroup]) {
    assert_eq!(panel.bytes.len(), OUTPUTS * panel.row_bytes, "16 rows");
    assert_eq!(panel.row_bytes, panel.format.row_bytes(to.len() * GROUP), "of the panel's length");
    // SAFETY: the path was chosen by detecting these features; sizes are asserted above.
    unsafe {
        match panel.format {
            QuantFormat::Q8_0 => put_down_as::<unpack::Q8_0>(panel, to),
            QuantFormat::Q4_0 => put_down_as::<unpack::Q4_0>(panel, to),
            QuantFormat::Q5_0 => put_down_as::<unpack::Q5_0>(panel, to),
            QuantFormat::Q4K => put_down_as::<unpack::Q4K>(panel, to),
            QuantFormat::Q6K => put_down_as::<unpack::Q6K>(panel, to),
        }
    }
}

/// # Safety
/// The CPU has AVX2 and F16C. `panel` has 16 rows of as many groups as `to`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn put_down_as<F: Unpack>(panel: PanelRows<'_>, to: &mut [PanelGroup]) {
    // SAFETY: the caller's promises.
    unsafe { unpack::put_down::<F, __m256i>(panel, to) };
}

/// Products of a tile's rows with a panel's outputs, for CPUs on which `QuantizedPath::detect` found
/// AVX2.
pub fn multiply(
    format: QuantFormat,
    panel: &[PanelGroup],
    x: ActivationTile<'_>,
    set: impl Fn(usize, &[f32; OUTPUTS]),
) {
    let mut row = 0;
    while row < x.rows {
        // SAFETY: the path was chosen by detecting AVX2 and FMA; rows are the tile's.
        row += unsafe {
            match x.rows - row {
                ROWS_MAX.. => rows::<ROWS_MAX>(format, panel, x, row, &set),
                _ => rows::<1>(format, panel, x, row, &set),
            }
        };
    }
}

/// `ROWS` rows from `first` on. Returns `ROWS`.
///
/// # Safety
/// The CPU has AVX2 and FMA; `x` has these rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const ROWS: usize>(
    format: QuantFormat,
    panel: &[PanelGroup],
    x: ActivationTile<'_>,
    first: usize,
    set: &impl Fn(usize, &[f32; OUTPUTS]),
) -> usize {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (index, group) in panel.iter().enumerate() {
        let fields = &x.group(index)[first..];
        if format.has_halves() {
            for half in 0..2 {
                let fours = half * GROUP / 8..(half + 1) * GROUP / 8;
                add(&mut sums, format, group, &group.scales[half], (fields, x.rows), fours);
            }
        } else {
            add(&mut sums, format, group, &group.scales[0], (fields, x.rows), 0..GROUP / 4);
        }
        if format.has_minima() {
            for row in 0..ROWS {
                let sum = number(fields[ActivationTile::sum(x.rows) + row]);
                for half in 0..2 {
                    let minima = eight(&group.minima, half);
                    sums[row][half] = _mm256_fnmadd_ps(minima, sum, sums[row][half]);
                }
            }
        }
    }
    for (row, halves) in sums.iter().enumerate() {
        let mut out = [0.0; OUTPUTS];
        for (half, sums) in halves.iter().enumerate() {
            // SAFETY: 8 of 16 floats.
            unsafe { _mm256_storeu_ps(out[8 * half..].as_mut_ptr(), *sums) };
        }
        set(x.first_row + first + row, &out);
    }
    ROWS
}

/// Adds the products of some fours of a group, which have one scale.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add<const ROWS: usize>(
    sums: &mut [[__m256; 2]; ROWS],
    format: QuantFormat,
    group: &PanelGroup,
    scales: &[f32; OUTPUTS],
    (fields, rows): (&[i32], usize),
    fours: std::ops::Range<usize>,
) {
    let zero = _mm256_set1_epi8(format.zero() as i8);
    let ones = _mm256_set1_epi16(1);
    let mut totals = [[_mm256_setzero_si256(); 2]; ROWS];
    for four in fours {
        let x: [__m256i; ROWS] = std::array::from_fn(|row| {
            _mm256_set1_epi32(fields[ActivationTile::four(rows, four) + row])
        });
        for half in 0..2 {
            // SAFETY: 32 of 64 codes.
            let codes =
                unsafe { _mm256_load_si256(group.codes[four][32 * half..].as_ptr().cast()) };
            // What is not signed comes first, so that sums of two fit 16 bits: 2 * 128 * 127.
            let signed = _mm256_sub_epi8(codes, zero);
            let unsigned = _mm256_abs_epi8(signed);
            for row in 0..ROWS {
                let pairs = _mm256_maddubs_epi16(unsigned, _mm256_sign_epi8(x[row], signed));
                let quads = _mm256_madd_epi16(pairs, ones);
                totals[row][half] = _mm256_add_epi32(totals[row][half], quads);
            }
        }
    }
    for row in 0..ROWS {
        let scale = number(fields[ActivationTile::scale(rows) + row]);
        for half in 0..2 {
            let scales = _mm256_mul_ps(eight(scales, half), scale);
            let totals = _mm256_cvtepi32_ps(totals[row][half]);
            sums[row][half] = _mm256_fmadd_ps(totals, scales, sums[row][half]);
        }
    }
}

/// A number in all lanes, of its bits.
#[inline]
#[target_feature(enable = "avx2")]
fn number(bits: i32) -> __m256 {
    _mm256_set1_ps(f32::from_bits(bits as u32))
}

/// Half of 16 numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(numbers: &[f32; OUTPUTS], half: usize) -> __m256 {
    // SAFETY: 8 of 16 floats.
    unsafe { _mm256_loadu_ps(numbers[8 * half..].as_ptr()) }
}
