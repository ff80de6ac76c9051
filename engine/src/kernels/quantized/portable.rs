//! Panels against activations in plain arithmetic, vectorised by the compiler.

// Numbers of rows, outputs and fours index several arrays at once.
#![allow(clippy::needless_range_loop)]

use multiversion::multiversion;

use super::activations::{ActivationGroup, Activations};
use super::panel::PanelGroup;
use super::{GROUP, OUTPUTS, QuantFormat};

/// Products of one row of activations with a panel's outputs.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2+fma"))]
pub fn row(
    format: QuantFormat,
    panel: &[PanelGroup],
    x: &Activations,
    row: usize,
) -> [f32; OUTPUTS] {
    let mut sums = [0.0; OUTPUTS];
    let groups = x.codes(row).as_chunks::<GROUP>().0.iter().zip(x.groups_of(row));
    for (group, (codes, of)) in panel.iter().zip(groups) {
        match format.has_halves() {
            true => {
                for half in 0..2 {
                    let totals = integers(group, codes, half * 4..half * 4 + 4, of.offsets[half]);
                    add(&mut sums, &totals, &group.scales[half], of.scale);
                }
            }
            false => {
                let totals = integers(group, codes, 0..8, of.offset);
                add(&mut sums, &totals, &group.scales[0], of.scale);
            }
        }
        if format.has_minima() {
            subtract_minima(&mut sums, group, of);
        }
    }
    sums
}

/// Sums of products over some fours of a group.
#[inline(always)]
fn integers(
    group: &PanelGroup,
    x: &[i8; GROUP],
    fours: std::ops::Range<usize>,
    offset: i32,
) -> [i32; OUTPUTS] {
    let mut totals = [offset; OUTPUTS];
    for four in fours {
        let x: [i32; 4] = std::array::from_fn(|element| i32::from(x[4 * four + element]));
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
fn subtract_minima(sums: &mut [f32; OUTPUTS], group: &PanelGroup, of: &ActivationGroup) {
    for output in 0..OUTPUTS {
        sums[output] = (-group.minima[output]).mul_add(of.sum, sums[output]);
    }
}
