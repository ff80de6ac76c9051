//! Panels against activations in plain arithmetic, vectorised by the compiler.

// Numbers of rows, outputs and fours index several arrays at once.
#![allow(clippy::needless_range_loop)]

use multiversion::multiversion;

use super::activations::ActivationTile;
use super::panel::PanelGroup;
use super::{OUTPUTS, QuantFormat};

/// Products of one row of a tile with a panel's outputs.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn row<'a>(
    format: QuantFormat,
    panel: &[PanelGroup],
    x: ActivationTile<'a>,
    row: usize,
) -> [f32; OUTPUTS] {
    let mut sums = [0.0; OUTPUTS];
    for (index, group) in panel.iter().enumerate() {
        let fields = x.group(index);
        let field = |at: usize| fields[at + row];
        let codes = |four: usize| field(ActivationTile::four(x.rows, four)).to_le_bytes();
        let scale = f32::from_bits(field(ActivationTile::scale(x.rows)) as u32);
        let mut add = |fours, offset: usize, scales| {
            let totals = integers(group, codes, fours, format.correction(field(offset)));
            add(&mut sums, &totals, scales, scale);
        };
        if format.has_halves() {
            add(0..4, ActivationTile::half_offset(x.rows, 0), &group.scales[0]);
            add(4..8, ActivationTile::half_offset(x.rows, 1), &group.scales[1]);
        } else {
            add(0..8, ActivationTile::offset(x.rows), &group.scales[0]);
        }
        if format.has_minima() {
            let sum = f32::from_bits(field(ActivationTile::sum(x.rows)) as u32);
            subtract_minima(&mut sums, group, sum);
        }
    }
    sums
}

/// Sums of products over some fours of a group.
#[inline(always)]
fn integers(
    group: &PanelGroup,
    x: impl Fn(usize) -> [u8; 4],
    fours: std::ops::Range<usize>,
    offset: i32,
) -> [i32; OUTPUTS] {
    let mut totals = [offset; OUTPUTS];
    for four in fours {
        let x = x(four).map(|code| i32::from(code as i8));
        for (total, codes) in totals.iter_mut().zip(group.codes[four].as_chunks::<4>().0) {
            for element in 0..4 {
                *total += i32::from(codes[element]) * x[element];
            }
        }
    }
    totals
}

#[inline(always)]
fn add(sums: &mut [f32; OUTPUTS], totals: &[i32; OUTPUTS], scales: &[f32; OUTPUTS], scale: f32) {
    for output in 0..OUTPUTS {
        sums[output] = (totals[output] as f32).mul_add(scales[output] * scale, sums[output]);
    }
}

#[inline(always)]
fn subtract_minima(sums: &mut [f32; OUTPUTS], group: &PanelGroup, sum: f32) {
    for output in 0..OUTPUTS {
        sums[output] = (-group.minima[output]).mul_add(sum, sums[output]);
    }
}
