//! Products of few rows with weights: right, and each row's bits do not depend on the others.

use cuda_kernels::{
    Dtype, GEMV_ROWS_MAX, Gemv, GemvWeights, KernelShape, Module, WeightCode, WidenWeights,
    quantize_rows,
};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::emulator::{SHAPE, Work, rounded, run, run_everywhere, stored};

#[derive(Clone, Copy, Debug)]
enum Format {
    Dense,
    Coded(WeightCode, usize),
}

struct Case {
    shape: KernelShape,
    format: Format,
    outputs: usize,
    inputs: usize,
    x: Vec<f32>,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn new(dtype: Dtype, format: Format, outputs: usize, inputs: usize, has_bias: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(inputs as u64);
        let mut numbers =
            |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
        let shape = KernelShape { activations: dtype, weights: dtype, ..SHAPE };
        Self {
            shape,
            format,
            outputs,
            inputs,
            x: rounded(&numbers(GEMV_ROWS_MAX * inputs), dtype),
            weights: rounded(&numbers(outputs * inputs), dtype),
            bias: has_bias.then(|| rounded(&numbers(outputs), dtype)),
        }
    }

    /// The work of some rows, and where its result is.
    fn work(&self, first: usize, rows: usize) -> (Work, u64) {
        let mut work = Work::default();
        let weights = match self.format {
            Format::Dense => {
                let dtype = self.shape.weights;
                GemvWeights::Dense { weights: work.numbers(&self.weights, dtype), dtype }
            }
            Format::Coded(code, group) => {
                let matrix = quantize_rows(&self.weights, group, code);
                let (codes, scales) = (work.bytes(matrix.codes), work.floats(&matrix.scales));
                match code {
                    WeightCode::Int8 => GemvWeights::Int8 { codes, scales, group },
                    WeightCode::Fp8 => GemvWeights::Fp8 { codes, scales, group },
                }
            }
        };
        let x = &self.x[first * self.inputs..][..rows * self.inputs];
        let gemv = Gemv {
            rows,
            outputs: self.outputs,
            inputs: self.inputs,
            y: work.room(rows * self.outputs * self.shape.activations.bytes()),
            x: work.numbers(x, self.shape.activations),
            weights,
            bias: self.bias.as_ref().map_or(0, |bias| work.numbers(bias, self.shape.weights)),
        };
        work.launches = vec![gemv.launch().unwrap()];
        (work, gemv.y)
    }

    /// The weights as they are multiplied with.
    fn dequantized(&self) -> Vec<f64> {
        let Format::Coded(code, group) = self.format else {
            return self.weights.iter().map(|weight| f64::from(*weight)).collect();
        };
        let matrix = quantize_rows(&self.weights, group, code);
        let value = |(index, bits): (usize, &u8)| {
            let number = match code {
                WeightCode::Int8 => f64::from(*bits as i8),
                WeightCode::Fp8 => fp8_value(*bits),
            };
            number * f64::from(matrix.scales[index / group])
        };
        matrix.codes.iter().enumerate().map(value).collect()
    }

    fn expected(&self, row: usize, output: usize, weights: &[f64]) -> f64 {
        let x = &self.x[row * self.inputs..][..self.inputs];
        let weights = &weights[output * self.inputs..][..self.inputs];
        let product: f64 = x.iter().zip(weights).map(|(x, weight)| f64::from(*x) * weight).sum();
        product + self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]))
    }

    #[track_caller]
    fn check(&self, is_watched: bool) {
        let bytes = self.shape.activations.bytes();
        let weights = self.dequantized();
        let mut alone = Vec::new();
        for row in 0..GEMV_ROWS_MAX {
            let (work, y) = self.work(row, 1);
            let run = if is_watched && row == 0 { run_everywhere } else { run };
            alone.extend(run(Module::Gemv, &self.shape, &work).bytes(y));
        }
        for (index, found) in values(&alone, self.shape.activations).iter().enumerate() {
            let expected = self.expected(index / self.outputs, index % self.outputs, &weights);
            let step = if bytes == 4 { 1e-5 } else { 1.0 / 200.0 };
            let error = (f64::from(*found) - expected).abs();
            assert!(error < step * expected.abs().max(1.0), "{index}: {found}, not {expected}");
        }
        for rows in 2..=GEMV_ROWS_MAX {
            let first = GEMV_ROWS_MAX - rows;
            let (work, y) = self.work(first, rows);
            let memory = run(Module::Gemv, &self.shape, &work);
            let expected = &alone[first * self.outputs * bytes..];
            assert!(memory.bytes(y) == expected, "{rows} rows are not as each alone");
        }
    }
}

fn fp8_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-6),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

fn values(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
        Dtype::Bf16 => {
            bytes.as_chunks().0.iter().map(|b| bf16::from_ne_bytes(*b).to_f32()).collect()
        }
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_ne_bytes(*b).to_f32()).collect(),
    }
}

#[test]
fn dense_weights() {
    Case::new(Dtype::F32, Format::Dense, 9, 1156, true).check(false);
    Case::new(Dtype::Bf16, Format::Dense, 17, 1032, false).check(true);
    Case::new(Dtype::F16, Format::Dense, 3, 8, true).check(false);
}

#[test]
fn weights_of_eight_bits() {
    let int8 = |group| Format::Coded(WeightCode::Int8, group);
    let fp8 = |group| Format::Coded(WeightCode::Fp8, group);
    Case::new(Dtype::Bf16, int8(1040), 5, 1040, true).check(true);
    Case::new(Dtype::F32, int8(32), 10, 576, false).check(false);
    Case::new(Dtype::Bf16, fp8(128), 7, 640, false).check(true);
    Case::new(Dtype::F32, fp8(16), 1, 48, true).check(false);
}

/// For products of many rows, codes become the numbers that they stand for.
#[test]
fn codes_are_widened_to_what_they_stand_for() {
    for (code, group) in [(WeightCode::Int8, 32), (WeightCode::Fp8, 128)] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let case = Case::new(dtype, Format::Coded(code, group), 9, 384, false);
            let matrix = quantize_rows(&case.weights, group, code);
            let mut work = Work::default();
            let (codes, scales) = (work.bytes(matrix.codes), work.floats(&matrix.scales));
            let weights = match code {
                WeightCode::Int8 => GemvWeights::Int8 { codes, scales, group },
                WeightCode::Fp8 => GemvWeights::Fp8 { codes, scales, group },
            };
            let count = case.weights.len();
            let out = work.room(count * dtype.bytes());
            work.launches = vec![WidenWeights { out, weights, count }.launch().unwrap().unwrap()];
            let memory = run_everywhere(Module::Gemv, &case.shape, &work);
            let expected: Vec<f32> = case.dequantized().iter().map(|x| *x as f32).collect();
            assert!(memory.bytes(out) == stored(&expected, dtype), "{code:?} {dtype:?}");
        }
    }
}
