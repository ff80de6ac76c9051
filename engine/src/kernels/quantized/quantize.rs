//! Numbers to blocks.

use half::f16;
use multiversion::multiversion;

use super::{CODE_MAX, GROUP, QuantFormat};

/// Rounds a row to Q8_0: each block's largest is ±127 times its scale.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2"))]
pub fn quantize_q8_0(row: &[f32], blocks: &mut [u8]) {
    let blocks = blocks.chunks_exact_mut(QuantFormat::Q8_0.block_bytes());
    for (numbers, block) in row.as_chunks::<GROUP>().0.iter().zip(blocks) {
        let largest = numbers.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
        // What is larger than any model's weights becomes the largest that there is.
        let scale = f16::from_f32(largest / CODE_MAX).min(f16::MAX);
        let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
        block[..2].copy_from_slice(&scale.to_le_bytes());
        for (code, number) in block[2..].iter_mut().zip(numbers) {
            *code = (number * inverse).round_ties_even().clamp(-CODE_MAX, CODE_MAX) as i8 as u8;
        }
    }
}
