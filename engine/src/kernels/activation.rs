//! Element-wise and row-wise pieces of a decoder layer. Rows are split over threads where there are
//! enough.

use multiversion::multiversion;

use super::Compute;
use super::math::{exp, sum_of_squares};
use super::rows::split_rows;

/// What an element of a norm costs, in multiply-adds: mostly memory.
const NORM_COST: usize = 4;
/// What an element of SwiGLU costs: mostly its exponential.
const SILU_COST: usize = 16;

/// An RMSNorm (Zhang and Sennrich 2019).
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// As many as a row has elements.
    pub weight: &'a [f32],
    /// What is added to the mean square.
    pub epsilon: f32,
}

impl RmsNorm<'_> {
    /// Writes each row of `x` (`[rows, weight.len()]`), normalised, to `out` (same shape).
    pub fn apply(&self, compute: &Compute, x: &[f32], out: &mut [f32]) {
        let row_len = self.weight.len();
        split_rows(compute, [(out, row_len)], NORM_COST * x.len(), |first, [out]| {
            normalise(*self, &x[first * row_len..][..out.len()], out);
        });
    }

    /// Adds `y` to `x`, and writes each row of the sum, normalised, to `out`.
    pub fn add_and_apply(&self, compute: &Compute, x: &mut [f32], y: &[f32], out: &mut [f32]) {
        let (row_len, cost) = (self.weight.len(), 2 * NORM_COST * x.len());
        split_rows(compute, [(x, row_len), (out, row_len)], cost, |first, [x, out]| {
            add_and_normalise(*self, x, &y[first * row_len..][..x.len()], out);
        });
    }

    /// Normalises heads (`[heads, weight.len()]`) in place.
    pub fn apply_to_heads(&self, heads: &mut [f32]) {
        normalise_in_place(*self, heads);
    }

    #[inline(always)]
    fn scale(&self, row: &[f32]) -> f32 {
        1.0 / (sum_of_squares(row) / row.len() as f32 + self.epsilon).sqrt()
    }

    #[inline(always)]
    fn normalise_row(&self, row: &[f32], out: &mut [f32]) {
        let scale = self.scale(row);
        for ((out, value), weight) in out.iter_mut().zip(row).zip(self.weight) {
            *out = value * scale * weight;
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise<'a>(norm: RmsNorm<'a>, x: &[f32], out: &mut [f32]) {
    let row_len = norm.weight.len();
    for (row, out) in x.chunks_exact(row_len).zip(out.chunks_exact_mut(row_len)) {
        norm.normalise_row(row, out);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn add_and_normalise<'a>(norm: RmsNorm<'a>, x: &mut [f32], y: &[f32], out: &mut [f32]) {
    let row_len = norm.weight.len();
    let rows = x.chunks_exact_mut(row_len).zip(y.chunks_exact(row_len));
    for ((x, y), out) in rows.zip(out.chunks_exact_mut(row_len)) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
        norm.normalise_row(x, out);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalise_in_place<'a>(norm: RmsNorm<'a>, heads: &mut [f32]) {
    for head in heads.chunks_exact_mut(norm.weight.len()) {
        let scale = norm.scale(head);
        for (value, weight) in head.iter_mut().zip(norm.weight) {
            *value = *value * scale * weight;
        }
    }
}

/// SwiGLU's middle: `gate[i] = silu(gate[i]) * up[i]`, rows of `row_len`.
pub fn silu_multiply(compute: &Compute, gate: &mut [f32], up: &[f32], row_len: usize) {
    let cost = SILU_COST * gate.len();
    split_rows(compute, [(gate, row_len)], cost, |first, [gate]| {
        silu_multiply_all(gate, &up[first * row_len..][..gate.len()]);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn silu_multiply_all(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `x[i] += y[i]`.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
