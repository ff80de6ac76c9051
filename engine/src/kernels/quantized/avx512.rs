//! Panels against activations by `vpdpbusd`: each of 16 lanes is an output, and takes four products per
//! instruction.

// Numbers of rows index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::activations::{ANY_ROWS_MAX, ActivationTile, Activations, TILE_ROWS_MAX};
use super::panel::{PanelGroup, PanelRows};
use super::unpack::{self, BLOCK_GROUPS_MAX, Blocks, Registers, Unpack};
use super::{GROUP, OUTPUTS, QuantFormat};

/// One panel with all rows of activations; `set` takes what comes out for each. Only for CPUs on which
/// `QuantizedPath::detect` found AVX-512 VNNI.
pub fn multiply_panel(
    panel: PanelRows<'_>,
    x: &Activations,
    scratch: &mut Vec<PanelGroup>,
    set: impl Fn(usize, &[f32; OUTPUTS]),
) {
    assert_eq!(panel.bytes.len(), OUTPUTS * panel.row_bytes, "16 rows");
    assert_eq!(panel.row_bytes, panel.format.row_bytes(x.groups() * GROUP), "of x's length");
    // SAFETY: the path was chosen by detecting these features; sizes are asserted above.
    unsafe {
        match panel.format {
            QuantFormat::Q8_0 => multiply::<unpack::Q8_0>(panel, x, scratch, set),
            QuantFormat::Q4_0 => multiply::<unpack::Q4_0>(panel, x, scratch, set),
            QuantFormat::Q5_0 => multiply::<unpack::Q5_0>(panel, x, scratch, set),
            QuantFormat::Q4K => multiply::<unpack::Q4K>(panel, x, scratch, set),
            QuantFormat::Q6K => multiply::<unpack::Q6K>(panel, x, scratch, set),
        }
    }
}

/// Few rows take what is unpacked as it comes; for more it is put down first.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI. `panel` has 16 rows of `x`'s length.
unsafe fn multiply<F: Unpack>(
    panel: PanelRows<'_>,
    x: &Activations,
    scratch: &mut Vec<PanelGroup>,
    set: impl Fn(usize, &[f32; OUTPUTS]),
) {
    let weights = match x.rows() > ANY_ROWS_MAX {
        false => Weights::Rows(panel),
        true => {
            scratch.resize(x.groups(), PanelGroup::ZERO);
            // SAFETY: the caller's promises.
            unsafe { put_down::<F>(panel, scratch) };
            Weights::Down(scratch)
        }
    };
    for tile in x.tiles() {
        // SAFETY: the caller's promises.
        unsafe {
            match tile.rows {
                1 => weights.multiply::<F, 1>(tile, &set),
                2 => weights.multiply::<F, 2>(tile, &set),
                3 => weights.multiply::<F, 3>(tile, &set),
                4 => weights.multiply::<F, 4>(tile, &set),
                5 => weights.multiply::<F, 5>(tile, &set),
                6 => weights.multiply::<F, 6>(tile, &set),
                7 => weights.multiply::<F, 7>(tile, &set),
                ANY_ROWS_MAX => weights.multiply::<F, ANY_ROWS_MAX>(tile, &set),
                TILE_ROWS_MAX => weights.multiply::<F, TILE_ROWS_MAX>(tile, &set),
                rows => unreachable!("no tile has {rows} rows"),
            }
        }
    }
}

/// A panel's weights.
#[derive(Clone, Copy)]
enum Weights<'a> {
    /// As they are stored.
    Rows(PanelRows<'a>),
    /// Unpacked.
    Down(&'a [PanelGroup]),
}

impl Weights<'_> {
    /// # Safety
    /// As `multiply`; `x` is one of its tiles and has `ROWS` rows.
    unsafe fn multiply<F: Unpack, const ROWS: usize>(
        self,
        x: ActivationTile<'_>,
        set: &impl Fn(usize, &[f32; OUTPUTS]),
    ) {
        // SAFETY: the caller's promises.
        let sums = unsafe {
            match self {
                Self::Rows(panel) => from_rows::<F, ROWS>(panel, x),
                Self::Down(panel) => from_panel::<F, ROWS>(panel, x),
            }
        };
        for (row, sums) in sums.iter().enumerate() {
            set(x.first_row + row, sums);
        }
    }
}

/// # Safety
/// As `Weights::multiply`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn from_rows<F: Unpack, const ROWS: usize>(
    panel: PanelRows<'_>,
    x: ActivationTile<'_>,
) -> [[f32; OUTPUTS]; ROWS] {
    let per_block = F::FORMAT.block_elements() / GROUP;
    let blocks = panel.row_bytes / F::FORMAT.block_bytes();
    // SAFETY: the caller's promises; the blocks and groups are those of a row.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); ROWS];
        let mut groups = [Registers::<__m512i>::zero(); BLOCK_GROUPS_MAX];
        for block in 0..blocks {
            unpack::prefetch_next::<F>(panel, block);
            F::unpack(Blocks::of::<F, __m512i>(panel, 0, block), &mut groups);
            for (index, group) in groups[..per_block].iter().enumerate() {
                accumulate::<F, ROWS>(&mut sums, group, x.group(block * per_block + index));
            }
        }
        floats(&sums)
    }
}

/// # Safety
/// As `Weights::multiply`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn from_panel<F: Unpack, const ROWS: usize>(
    panel: &[PanelGroup],
    x: ActivationTile<'_>,
) -> [[f32; OUTPUTS]; ROWS] {
    // SAFETY: arrays of a register's size each; the rest by the caller's promises.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); ROWS];
        for (index, group) in panel.iter().enumerate() {
            let mut registers = Registers::zero();
            for (to, codes) in registers.codes.iter_mut().zip(&group.codes) {
                *to = _mm512_load_si512(codes.as_ptr().cast());
            }
            for (to, scales) in registers.scales.iter_mut().zip(&group.scales) {
                *to = _mm512_load_ps(scales.as_ptr());
            }
            registers.minima = _mm512_load_ps(group.minima.as_ptr());
            accumulate::<F, ROWS>(&mut sums, &registers, x.group(index));
        }
        floats(&sums)
    }
}

/// Unpacks a whole panel.
///
/// # Safety
/// As `multiply`; `to` has as many groups as the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn put_down<F: Unpack>(panel: PanelRows<'_>, to: &mut [PanelGroup]) {
    // SAFETY: the caller's promises.
    unsafe { unpack::put_down::<F, __m512i>(panel, to) };
}

/// Adds the products of one group; `x` is `[FIELDS, ROWS]`.
///
/// # Safety
/// The CPU has AVX-512 F and VNNI; `x` has all fields of a group of `ROWS` rows.
#[inline(always)]
unsafe fn accumulate<F: Unpack, const ROWS: usize>(
    sums: &mut [__m512; ROWS],
    panel: &Registers<__m512i>,
    x: &[i32],
) {
    let x = x.as_ptr();
    // SAFETY: the caller's promises.
    unsafe {
        if F::FORMAT.has_halves() {
            for half in 0..2 {
                let offset = ActivationTile::half_offset(ROWS, half);
                let fours = half * GROUP / 8..(half + 1) * GROUP / 8;
                add::<F, ROWS>(sums, &panel.codes, panel.scales[half], (x, offset, fours));
            }
        } else {
            let offset = ActivationTile::offset(ROWS);
            add::<F, ROWS>(sums, &panel.codes, panel.scales[0], (x, offset, 0..GROUP / 4));
        }
        if F::FORMAT.has_minima() {
            for row in 0..ROWS {
                let sum = _mm512_set1_ps(*x.add(ActivationTile::sum(ROWS) + row).cast::<f32>());
                sums[row] = _mm512_fnmadd_ps(panel.minima, sum, sums[row]);
            }
        }
    }
}

/// Adds the products of some fours of a group, which have one scale; `x` is its fields, where its
/// offsets are, and which fours.
///
/// # Safety
/// As `accumulate`.
#[inline(always)]
unsafe fn add<F: Unpack, const ROWS: usize>(
    sums: &mut [__m512; ROWS],
    codes: &[__m512i; GROUP / 4],
    scales: __m512,
    (x, offset, fours): (*const i32, usize, Range<usize>),
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut totals = [_mm512_setzero_si512(); ROWS];
        for row in 0..ROWS {
            totals[row] = _mm512_set1_epi32(F::FORMAT.correction(*x.add(offset + row)));
        }
        for four in fours {
            for row in 0..ROWS {
                let x = _mm512_set1_epi32(*x.add(ActivationTile::four(ROWS, four) + row));
                totals[row] = _mm512_dpbusd_epi32(totals[row], codes[four], x);
            }
        }
        for row in 0..ROWS {
            let scale = _mm512_set1_ps(*x.add(ActivationTile::scale(ROWS) + row).cast::<f32>());
            let scales = _mm512_mul_ps(scales, scale);
            sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[row]), scales, sums[row]);
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn floats<const ROWS: usize>(registers: &[__m512; ROWS]) -> [[f32; OUTPUTS]; ROWS] {
    let mut floats = [[0.0; OUTPUTS]; ROWS];
    for (floats, register) in floats.iter_mut().zip(registers) {
        // SAFETY: the caller's promise; 16 floats.
        unsafe { _mm512_storeu_ps(floats.as_mut_ptr(), *register) };
    }
    floats
}
