//! Element-wise and row-wise pieces of a decoder layer. Rows are split over threads where there are
//! enough.

use multiversion::multiversion;

use super::Compute;
use super::math::{exp, sum_of_squares};
use super::rows::split_rows;

/// What an element of a norm costs, in multiply-adds: mostly memory.
const NORM_COST: usize = 4;

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

/// SwiGLU's middle: `gate[i] = silu(gate[i]) * up[i]`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub fn silu_multiply(gate: &mut [f32], up: &[f32]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::KernelPath;

    /// More rows than stay on one thread.
    const ROWS: usize = 700;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Within rounding of what f64 says, and the same bits on one thread and on two, all rows together
    /// and each alone.
    fn check(
        row_len: usize,
        compute_rows: impl Fn(&Compute, &[f32], &[f32]) -> Vec<f32> + Sync,
        expected: impl Fn(&[f64], &[f64]) -> Vec<f64>,
    ) {
        let (x, y) = (numbers(ROWS * row_len, 1), numbers(ROWS * row_len, 2));
        let computes = [1, 2].map(|threads| Compute::new(threads, KernelPath::Portable).unwrap());
        let all = |compute: &Compute| compute_rows(compute, &x, &y);
        let found = all(&computes[0]);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&all(&computes[1])), "{row_len}: two threads");
        let rows = x.chunks_exact(row_len).zip(y.chunks_exact(row_len));
        for ((x, y), found) in rows.zip(found.chunks_exact(row_len)) {
            let alone = compute_rows(&computes[0], x, y);
            assert!(bits(found) == bits(&alone), "{row_len}: a row alone");
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            for (found, expected) in found.iter().zip(expected(&wide(x), &wide(y))) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 2e-6 * expected.abs().max(1.0), "{row_len}: {found}, {expected}");
            }
        }
    }

    fn normalised(x: &[f64], weight: &[f32]) -> Vec<f64> {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean_square + 1e-3).sqrt();
        x.iter().zip(weight).map(|(x, weight)| x * scale * f64::from(*weight)).collect()
    }

    #[test]
    fn norms_are_right_and_the_same_alone() {
        for row_len in [1, 8, 24, 64, 100, 896] {
            let weight = numbers(row_len, 3);
            let norm = RmsNorm { weight: &weight, epsilon: 1e-3 };
            let apply = |compute: &Compute, x: &[f32], _: &[f32]| {
                let mut out = vec![f32::NAN; x.len()];
                norm.apply(compute, x, &mut out);
                let mut in_place = x.to_vec();
                norm.apply_to_heads(&mut in_place);
                assert_eq!(out, in_place);
                out
            };
            check(row_len, apply, |x, _| normalised(x, &weight));
            let add_and_apply = |compute: &Compute, x: &[f32], y: &[f32]| {
                let (mut sum, mut out) = (x.to_vec(), vec![f32::NAN; x.len()]);
                norm.add_and_apply(compute, &mut sum, y, &mut out);
                assert!(sum.iter().zip(x.iter().zip(y)).all(|(sum, (x, y))| *sum == x + y));
                out
            };
            let sums = |x: &[f64], y: &[f64]| -> Vec<f64> {
                x.iter().zip(y).map(|(x, y)| f64::from((x + y) as f32)).collect()
            };
            check(row_len, add_and_apply, |x, y| normalised(&sums(x, y), &weight));
        }
    }

    #[test]
    fn swiglu_is_right_and_the_same_alone() {
        for row_len in [1, 7, 16, 100, 1000] {
            let multiply = |_: &Compute, x: &[f32], y: &[f32]| {
                let mut gate = x.to_vec();
                silu_multiply(&mut gate, y);
                gate
            };
            let expected = |x: &[f64], y: &[f64]| {
                x.iter().zip(y).map(|(x, y)| x / (1.0 + (-x).exp()) * y).collect()
            };
            check(row_len, multiply, expected);
        }
    }
}
