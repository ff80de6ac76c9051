//! Products with weights, of Qwen2 0.5B's feed-forward layer: for one sequence, for eight, and for a chunk
//! of 512. Each iteration takes the next of several matrices, so that none is in a cache.

use criterion::Criterion;
use engine::kernels::{Matrix, QuantFormat, WeightData, matmul};
use half::{bf16, f16};

use crate::limits::{Cost, Limits};

const OUTPUTS: usize = 4864;
/// Of which all formats make whole blocks.
const INPUTS: usize = 1024;
/// Together more than a third cache has.
const COPIES: usize = 12;

/// Of every type.
pub fn products(criterion: &mut Criterion, limits: &Limits) {
    let elements = COPIES * OUTPUTS * INPUTS;
    let numbers: Vec<f32> = (0..elements).map(|k| (k * 7 % 29) as f32 / 29.0 - 0.5).collect();
    let bf16s: Vec<bf16> = numbers.iter().copied().map(bf16::from_f32).collect();
    let f16s: Vec<f16> = numbers.iter().copied().map(f16::from_f32).collect();
    product(criterion, limits, "bf16", &bf16s, WeightData::Bf16);
    product(criterion, limits, "f16", &f16s, WeightData::F16);
    product(criterion, limits, "f32", &numbers, WeightData::F32);
    for format in QuantFormat::ALL {
        // Any bytes are blocks; these have no scale that is not a number.
        let bytes: Vec<u8> =
            (0..COPIES * OUTPUTS * format.row_bytes(INPUTS)).map(|k| (k * 5 % 59) as u8).collect();
        let data = |bytes| WeightData::Quantized { format, bytes };
        product(criterion, limits, &format.to_string(), &bytes, data);
    }
}

fn product<'a, T>(
    criterion: &mut Criterion,
    limits: &Limits,
    name: &str,
    weights: &'a [T],
    data: impl Fn(&'a [T]) -> WeightData<'a>,
) {
    for rows in [1, 8, 512] {
        let x: Vec<f32> = (0..rows * INPUTS).map(|k| (k % 23) as f32 / 23.0 - 0.5).collect();
        let mut y = vec![0.0; rows * OUTPUTS];
        let mut matrices = weights.chunks_exact(weights.len() / COPIES).cycle();
        let bytes = size_of_val(weights) / COPIES;
        let cost = Cost { bytes, multiply_adds: rows * OUTPUTS * INPUTS };
        limits.bench(criterion, &format!("product/{name}/{rows} rows"), cost, |compute| {
            let data = data(matrices.next().expect("it goes on for ever"));
            matmul(compute, &x, &Matrix { data, outputs: OUTPUTS, inputs: INPUTS }, &mut y);
        });
    }
}
