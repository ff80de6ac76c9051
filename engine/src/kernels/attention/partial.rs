//! What softmax knows after a part of a context.

use multiversion::multiversion;

use crate::kernels::math::exp;

/// Of some queries: the largest score, the sum of the weights relative to it, and the values added
/// with those weights.
pub struct Partial {
    pub maxima: Vec<f32>,
    pub sums: Vec<f32>,
    /// `[queries, head_dim]`.
    pub values: Vec<f32>,
    head_dim: usize,
}

impl Partial {
    /// Of nothing yet.
    pub fn new(queries: usize, head_dim: usize) -> Self {
        Self {
            maxima: vec![f32::NEG_INFINITY; queries],
            sums: vec![0.0; queries],
            values: vec![0.0; queries * head_dim],
            head_dim,
        }
    }

    /// Together with the part behind it.
    pub fn merged(mut self, next: Self) -> Self {
        merge(&mut self, &next);
        self
    }

    /// How many values there are.
    pub fn values_len(&self) -> usize {
        self.values.len()
    }

    /// Writes finished values, from the `first`th on.
    pub fn write_values(&self, first: usize, out: &mut [f32]) {
        let queries = out.chunks_exact_mut(self.head_dim).zip(&self.sums[first / self.head_dim..]);
        let values = self.values[first..].chunks_exact(self.head_dim);
        for ((out, sum), values) in queries.zip(values) {
            let inverse = 1.0 / sum;
            for (out, value) in out.iter_mut().zip(values) {
                *out = value * inverse;
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+fma", "x86_64+avx2+fma"))]
fn merge(before: &mut Partial, next: &Partial) {
    let head_dim = before.head_dim;
    let values = before.values.chunks_exact_mut(head_dim).zip(next.values.chunks_exact(head_dim));
    for (query, (values, next_values)) in values.enumerate() {
        // With windows, some rows of a tile see parts that others do not: a row alone would begin with
        // the first part that it sees.
        if next.maxima[query] == f32::NEG_INFINITY {
            continue;
        }
        if before.maxima[query] == f32::NEG_INFINITY {
            values.copy_from_slice(next_values);
            before.sums[query] = next.sums[query];
            before.maxima[query] = next.maxima[query];
            continue;
        }
        let max = before.maxima[query].max(next.maxima[query]);
        let scale = exp(before.maxima[query] - max);
        let next_scale = exp(next.maxima[query] - max);
        for (value, next) in values.iter_mut().zip(next_values) {
            *value = next.mul_add(next_scale, *value * scale);
        }
        before.sums[query] = next.sums[query].mul_add(next_scale, before.sums[query] * scale);
        before.maxima[query] = max;
    }
}
