//! Simple quantisers: valid blocks of every format that is served, and what their codes stand for,
//! worked out here by the formats' definitions and not by what reads them.

use half::{bf16, f16};

use crate::TensorType;

/// Stores numbers as `kind`. Returns the bytes, and the numbers that they stand for. `numbers` are
/// whole blocks.
pub fn quantize(kind: TensorType, numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    match kind {
        TensorType::F32 => plain(numbers, |number| (number.to_le_bytes(), number)),
        TensorType::F16 => plain(numbers, |number| {
            let half = f16::from_f32(number);
            (half.to_le_bytes(), half.to_f32())
        }),
        TensorType::BF16 => plain(numbers, |number| {
            let half = bf16::from_f32(number);
            (half.to_le_bytes(), half.to_f32())
        }),
        TensorType::Q8_0 => blocks(numbers, q8_0),
        TensorType::Q4_0 => blocks(numbers, q4_0),
        TensorType::Q5_0 => blocks(numbers, q5_0),
        TensorType::Q4_K => blocks(numbers, q4_k),
        TensorType::Q6_K => blocks(numbers, q6_k),
        other => panic!("no quantiser for {other}"),
    }
}

fn plain<const N: usize>(
    numbers: &[f32],
    store: impl Fn(f32) -> ([u8; N], f32),
) -> (Vec<u8>, Vec<f32>) {
    let stored: Vec<_> = numbers.iter().map(|number| store(*number)).collect();
    let bytes = stored.iter().flat_map(|(bytes, _)| *bytes).collect();
    (bytes, stored.iter().map(|(_, number)| *number).collect())
}

fn blocks<const ELEMENTS: usize, const BYTES: usize>(
    numbers: &[f32],
    block: impl Fn(&[f32; ELEMENTS]) -> ([u8; BYTES], [f32; ELEMENTS]),
) -> (Vec<u8>, Vec<f32>) {
    let (whole, rest) = numbers.as_chunks::<ELEMENTS>();
    assert!(rest.is_empty(), "whole blocks");
    let stored: Vec<_> = whole.iter().map(block).collect();
    let bytes = stored.iter().flat_map(|(bytes, _)| *bytes).collect();
    (bytes, stored.iter().flat_map(|(_, numbers)| *numbers).collect())
}

fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |largest: f32, number| largest.max(number.abs()))
}

/// The scale as a file stores it, and codes from `-limit` to `limit`.
fn symmetric<const N: usize>(numbers: &[f32; N], limit: f32) -> (f16, [i32; N]) {
    let scale = f16::from_f32(largest(numbers) / limit);
    (scale, codes(numbers, scale.to_f32(), limit))
}

fn codes<const N: usize>(numbers: &[f32; N], scale: f32, limit: f32) -> [i32; N] {
    numbers.map(|number| match scale == 0.0 {
        true => 0,
        false => (number / scale).round().clamp(-limit, limit) as i32,
    })
}

fn q8_0(numbers: &[f32; 32]) -> ([u8; 34], [f32; 32]) {
    let (scale, codes) = symmetric(numbers, 127.0);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for (k, code) in codes.iter().enumerate() {
        block[2 + k] = *code as i8 as u8;
    }
    (block, codes.map(|code| scale.to_f32() * code as f32))
}

fn q4_0(numbers: &[f32; 32]) -> ([u8; 18], [f32; 32]) {
    let (scale, codes) = symmetric(numbers, 7.0);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for k in 0..16 {
        block[2 + k] = (codes[k] + 8) as u8 | ((codes[k + 16] + 8) as u8) << 4;
    }
    (block, codes.map(|code| scale.to_f32() * code as f32))
}

fn q5_0(numbers: &[f32; 32]) -> ([u8; 22], [f32; 32]) {
    let (scale, codes) = symmetric(numbers, 15.0);
    let stored = codes.map(|code| (code + 16) as u32);
    let high: u32 = (0..32).map(|k| (stored[k] >> 4) << k).sum();
    let mut block = [0; 22];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    block[2..6].copy_from_slice(&high.to_le_bytes());
    for k in 0..16 {
        block[6 + k] = ((stored[k] & 15) | (stored[k + 16] & 15) << 4) as u8;
    }
    (block, codes.map(|code| scale.to_f32() * code as f32))
}

/// Eight groups of 32: `scale * scale6 * code - minimum * minimum6`, codes of 4 bits.
fn q4_k(numbers: &[f32; 256]) -> ([u8; 144], [f32; 256]) {
    let groups = numbers.as_chunks::<32>().0;
    let least = |group: &[f32; 32]| group.iter().fold(0.0f32, |least, number| least.min(*number));
    let most = |group: &[f32; 32]| group.iter().fold(0.0f32, |most, number| most.max(*number));
    let minima: Vec<f32> = groups.iter().map(|group| -least(group)).collect();
    let steps: Vec<f32> = groups.iter().map(|group| (most(group) - least(group)) / 15.0).collect();
    let (scale, scales) = six_bits(&steps);
    let (minimum, minimums) = six_bits(&minima);
    let mut block = [0; 144];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    block[2..4].copy_from_slice(&minimum.to_le_bytes());
    // Of the groups 4 to 7, the upper two bits lie above those of the groups 0 to 3.
    for group in 0..4 {
        let (later_scale, later_minimum) = (scales[group + 4], minimums[group + 4]);
        block[4 + group] = scales[group] | (later_scale >> 4) << 6;
        block[8 + group] = minimums[group] | (later_minimum >> 4) << 6;
        block[12 + group] = later_scale & 15 | (later_minimum & 15) << 4;
    }
    let mut stands_for = [0.0; 256];
    for (k, number) in numbers.iter().enumerate() {
        let group = k / 32;
        let step = scale.to_f32() * f32::from(scales[group]);
        let least = minimum.to_f32() * f32::from(minimums[group]);
        let code = if step == 0.0 { 0.0 } else { ((number + least) / step).round() };
        let code = code.clamp(0.0, 15.0);
        stands_for[k] = step * code - least;
        // Two groups share 32 bytes: the even one has the lower halves.
        block[16 + group / 2 * 32 + k % 32] |= (code as u8) << (group % 2 * 4);
    }
    (block, stands_for)
}

/// Numbers from 0 as a scale and 6-bit factors.
fn six_bits(numbers: &[f32]) -> (f16, [u8; 8]) {
    let scale = f16::from_f32(largest(numbers) / 63.0);
    let factor = |number: f32| match scale.to_f32() == 0.0 {
        true => 0,
        false => (number / scale.to_f32()).round().clamp(0.0, 63.0) as u8,
    };
    (scale, std::array::from_fn(|group| factor(numbers[group])))
}

/// Sixteen groups of 16: `scale * scale8 * (code - 32)`, codes of 6 bits.
fn q6_k(numbers: &[f32; 256]) -> ([u8; 210], [f32; 256]) {
    let groups = numbers.as_chunks::<16>().0;
    let steps: Vec<f32> = groups.iter().map(|group| largest(group) / 31.0).collect();
    let scale = f16::from_f32(largest(&steps) / 127.0);
    let mut block = [0; 210];
    block[208..].copy_from_slice(&scale.to_le_bytes());
    let mut stands_for = [0.0; 256];
    for (index, group) in groups.iter().enumerate() {
        let factor = match scale.to_f32() == 0.0 {
            true => 0.0,
            false => (steps[index] / scale.to_f32()).round().clamp(0.0, 127.0),
        };
        block[192 + index] = factor as i8 as u8;
        let step = scale.to_f32() * factor;
        for (k, code) in codes(group, step, 31.0).into_iter().enumerate() {
            let at = index * 16 + k;
            stands_for[at] = step * code as f32;
            let code = (code + 32) as u8;
            // Of each half of the block: 64 bytes of lower bits for four runs of 32, then upper ones.
            let (half, run, place) = (at / 128, at % 128 / 32, at % 32);
            block[half * 64 + run % 2 * 32 + place] |= (code & 15) << (run / 2 * 4);
            block[128 + half * 32 + place] |= (code >> 4) << (run * 2);
        }
    }
    (block, stands_for)
}
