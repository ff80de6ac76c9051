//! Element-wise and row-wise pieces of a decoder layer.

use multiversion::multiversion;

use super::math::{exp, sum_of};

/// RMSNorm (Zhang and Sennrich 2019) of each row of `x` (`[rows, weight.len()]`), in place.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    for row in x.chunks_exact_mut(weight.len()) {
        let mean_square = sum_of(row, |v| v * v) / row.len() as f32;
        let scale = 1.0 / (mean_square + epsilon).sqrt();
        for (value, weight) in row.iter_mut().zip(weight) {
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
