//! Activations in 8 bits.

use multiversion::multiversion;

use super::{GROUP, QuantFormat};

/// The largest code; -128 is not used.
const CODE_MAX: f32 = 127.0;

/// Rows of activations, each group of 32 with a scale of its own.
pub struct Activations {
    groups: usize,
    /// `[rows, groups, 32]`.
    codes: Vec<i8>,
    groups_of: Vec<ActivationGroup>,
}

/// What belongs to a group beside its codes.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct ActivationGroup {
    /// What a code of 1 stands for.
    pub scale: f32,
    /// The group's sum, in codes, times its scale.
    pub sum: f32,
    /// What a sum of codes (of the first half, of the second) has too much or too little because the
    /// weights' codes are not signed.
    pub offsets: [i32; 2],
    /// Of both halves.
    pub offset: i32,
}

impl Activations {
    /// Rounds `x` (`[rows, inputs]`) for products with weights of this format. `inputs` is a multiple
    /// of 32.
    pub fn quantize(x: &[f32], inputs: usize, format: QuantFormat) -> Self {
        let groups = inputs / GROUP;
        let mut codes = vec![0; x.len()];
        let mut groups_of = vec![ActivationGroup::default(); x.len() / GROUP];
        quantize(x, format.zero(), &mut codes, &mut groups_of);
        Self { groups, codes, groups_of }
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.groups_of.len() / self.groups
    }

    /// The codes of a row: `[groups, 32]`.
    pub fn codes(&self, row: usize) -> &[i8] {
        &self.codes[row * self.groups * GROUP..][..self.groups * GROUP]
    }

    /// The groups of a row.
    pub fn groups_of(&self, row: usize) -> &[ActivationGroup] {
        &self.groups_of[row * self.groups..][..self.groups]
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
fn quantize(x: &[f32], zero: i32, codes: &mut [i8], groups_of: &mut [ActivationGroup]) {
    let groups = x.as_chunks::<GROUP>().0.iter().zip(codes.as_chunks_mut::<GROUP>().0);
    for ((x, codes), group) in groups.zip(groups_of) {
        let largest = x.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / CODE_MAX;
        let inverse = if largest > 0.0 { CODE_MAX / largest } else { 0.0 };
        for (code, value) in codes.iter_mut().zip(x) {
            *code = round(value * inverse) as i8;
        }
        let sum_of = |half: &[i8]| half.iter().map(|code| i32::from(*code)).sum::<i32>();
        let sums = [sum_of(&codes[..GROUP / 2]), sum_of(&codes[GROUP / 2..])];
        let offsets = sums.map(|sum| -zero * sum);
        *group = ActivationGroup {
            scale,
            sum: (sums[0] + sums[1]) as f32 * scale,
            offsets,
            offset: offsets[0] + offsets[1],
        };
    }
}

/// To the nearest integer, ties to even, for small numbers: adding 1.5 * 2^23 leaves no fraction.
#[inline(always)]
fn round(value: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (value + ROUND) - ROUND
}
