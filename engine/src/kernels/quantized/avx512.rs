//! Panels against activations by `vpdpbusd`: each of 16 lanes is an output, and takes four products per
//! instruction.

// Numbers of rows, outputs and fours index several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use super::activations::Activations;
use super::panel::{PanelGroup, PanelRows};
use super::unpack::{self, Registers, UNIT_GROUPS_MAX, Unpack};
use super::{GROUP, OUTPUTS, QuantFormat};

/// So few rows take what is unpacked as it comes; for more it is put down first.
const ROWS_DIRECT: usize = 4;

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

/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI. `panel` has 16 rows of `x`'s length.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn multiply<F: Unpack>(
    panel: PanelRows<'_>,
    x: &Activations,
    scratch: &mut Vec<PanelGroup>,
    set: impl Fn(usize, &[f32; OUTPUTS]),
) {
    // SAFETY: the caller's promises hold for all of these.
    unsafe {
        match x.rows() {
            1 => direct::<F, 1>(panel, x, set),
            2 => direct::<F, 2>(panel, x, set),
            3 => direct::<F, 3>(panel, x, set),
            ROWS_DIRECT => direct::<F, ROWS_DIRECT>(panel, x, set),
            rows => {
                put_down::<F>(panel, x.groups(), scratch);
                let mut row = 0;
                while row < rows {
                    row += match rows - row {
                        12.. => tile::<F, 12>(scratch, x, row, &set),
                        8.. => tile::<F, 8>(scratch, x, row, &set),
                        4.. => tile::<F, 4>(scratch, x, row, &set),
                        2.. => tile::<F, 2>(scratch, x, row, &set),
                        _ => tile::<F, 1>(scratch, x, row, &set),
                    }
                }
            }
        }
    }
}

/// # Safety
/// As `multiply`; x has `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn direct<F: Unpack, const ROWS: usize>(
    panel: PanelRows<'_>,
    x: &Activations,
    set: impl Fn(usize, &[f32; OUTPUTS]),
) {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    let mut groups = [Registers::zero(); UNIT_GROUPS_MAX];
    for block in 0..x.groups() / F::GROUPS {
        // SAFETY: the caller's promises; the blocks and groups are those of a row.
        unsafe {
            F::unpack(panel, block, &mut groups);
            for (index, group) in groups[..F::GROUPS].iter().enumerate() {
                accumulate::<F, ROWS>(&mut sums, group, x, 0, block * F::GROUPS + index);
            }
        }
    }
    give(&sums, 0, &set);
}

/// Unpacks a whole panel.
///
/// # Safety
/// As `multiply`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn put_down<F: Unpack>(panel: PanelRows<'_>, groups: usize, scratch: &mut Vec<PanelGroup>) {
    scratch.resize(groups, PanelGroup::ZERO);
    let mut unpacked = [Registers::zero(); UNIT_GROUPS_MAX];
    for (block, to) in scratch.chunks_exact_mut(F::GROUPS).enumerate() {
        // SAFETY: the caller's promises; the block is one of a row's.
        unsafe { F::unpack(panel, block, &mut unpacked) };
        for (to, from) in to.iter_mut().zip(&unpacked) {
            // SAFETY: as many bytes as a register has.
            unsafe {
                for (to, from) in to.codes.iter_mut().zip(from.codes) {
                    _mm512_storeu_si512(to.as_mut_ptr().cast(), from);
                }
                for (to, from) in to.scales.iter_mut().zip(from.scales) {
                    _mm512_storeu_ps(to.as_mut_ptr(), from);
                }
                _mm512_storeu_ps(to.minima.as_mut_ptr(), from.minima);
            }
        }
    }
}

/// `ROWS` rows from `row` on with a whole panel. Returns `ROWS`.
///
/// # Safety
/// As `multiply`; x has these rows, and `panel` all groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<F: Unpack, const ROWS: usize>(
    panel: &[PanelGroup],
    x: &Activations,
    row: usize,
    set: &impl Fn(usize, &[f32; OUTPUTS]),
) -> usize {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for (index, group) in panel.iter().enumerate() {
        // SAFETY: arrays of a register's size each; the rest by the caller's promises.
        unsafe {
            let codes = std::array::from_fn(|four| load(&group.codes[four]));
            let scales = group.scales.map(|scales| _mm512_loadu_ps(scales.as_ptr()));
            let minima = _mm512_loadu_ps(group.minima.as_ptr());
            let group = Registers { codes, scales, minima };
            accumulate::<F, ROWS>(&mut sums, &group, x, row, index);
        }
    }
    give(&sums, row, set);
    ROWS
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(codes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
}

/// Adds the products of one group of `ROWS` rows from `first` on.
///
/// # Safety
/// The CPU has the features; x has these rows and this group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn accumulate<F: Unpack, const ROWS: usize>(
    sums: &mut [__m512; ROWS],
    panel: &Registers,
    x: &Activations,
    first: usize,
    group: usize,
) {
    let of = |row: usize| {
        // SAFETY: x has this row and group.
        unsafe { x.groups_of(first + row).get_unchecked(group) }
    };
    let codes = |row: usize| {
        // SAFETY: as above, 32 codes each.
        unsafe { x.codes(first + row).as_ptr().add(group * GROUP).cast::<i32>() }
    };
    let add = |sums: &mut [__m512; ROWS], totals: [__m512i; ROWS], scales: __m512| {
        for row in 0..ROWS {
            let scales = _mm512_mul_ps(scales, _mm512_set1_ps(of(row).scale));
            sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[row]), scales, sums[row]);
        }
    };
    let start = |row: usize| if F::HAS_HALVES { of(row).offsets[0] } else { of(row).offset };
    let mut totals: [__m512i; ROWS] = std::array::from_fn(|row| _mm512_set1_epi32(start(row)));
    for four in 0..GROUP / 4 {
        if F::HAS_HALVES && four == GROUP / 8 {
            add(sums, totals, panel.scales[0]);
            totals = std::array::from_fn(|row| _mm512_set1_epi32(of(row).offsets[1]));
        }
        for row in 0..ROWS {
            // SAFETY: 8 dwords of codes.
            let x = unsafe { codes(row).add(four).read_unaligned() };
            totals[row] = _mm512_dpbusd_epi32(totals[row], panel.codes[four], _mm512_set1_epi32(x));
        }
    }
    add(sums, totals, panel.scales[usize::from(F::HAS_HALVES)]);
    if F::HAS_MINIMA {
        for row in 0..ROWS {
            sums[row] = _mm512_fnmadd_ps(panel.minima, _mm512_set1_ps(of(row).sum), sums[row]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn give<const ROWS: usize>(
    sums: &[__m512; ROWS],
    first: usize,
    set: &impl Fn(usize, &[f32; OUTPUTS]),
) {
    for (row, sums) in sums.iter().enumerate() {
        let mut out = [0.0; OUTPUTS];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sums) };
        set(first + row, &out);
    }
}
