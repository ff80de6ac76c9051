//! Products of activations with weights stored row by row: `y[m, n] = sum over k of x[m, k] w[n, k]`.

use half::{bf16, f16};

use super::defect::multiply_backwards;
use super::quantized::multiply_quantized;
use super::tile::{Output, Tile};
use super::{Compute, Defect, Element, QuantFormat, portable};

/// Stored weights, borrowed.
#[derive(Clone, Copy)]
pub enum WeightData<'a> {
    /// 4-byte floats.
    F32(&'a [f32]),
    /// The upper half of an f32.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Blocks of codes with scales; rows are whole blocks.
    Quantized {
        /// How they are stored.
        format: QuantFormat,
        /// `[outputs, inputs]`.
        bytes: &'a [u8],
    },
}

/// Weights of a linear layer, `[outputs, inputs]`, row by row.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The numbers.
    pub data: WeightData<'a>,
    /// Rows: elements of y.
    pub outputs: usize,
    /// Columns: elements of x.
    pub inputs: usize,
}

impl Matrix<'_> {
    /// Widens one row (an embedding) into `row` (`[inputs]`).
    pub fn copy_row(&self, index: usize, row: &mut [f32]) {
        let range = index * self.inputs..(index + 1) * self.inputs;
        match self.data {
            WeightData::F32(data) => widen_into(&data[range], row),
            WeightData::Bf16(data) => widen_into(&data[range], row),
            WeightData::F16(data) => widen_into(&data[range], row),
            WeightData::Quantized { format, bytes } => {
                let row_bytes = format.row_bytes(self.inputs);
                format.dequantize(&bytes[index * row_bytes..][..row_bytes], row);
            }
        }
    }
}

fn widen_into<E: Element>(stored: &[E], row: &mut [f32]) {
    for (to, from) in row.iter_mut().zip(stored) {
        *to = from.widen();
    }
}

/// Multiplies `x` (`[rows, inputs]`) with `weight` into `y` (`[rows, outputs]`).
pub fn matmul(compute: &Compute, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) {
    let rows = x.len() / weight.inputs;
    assert_eq!(x.len(), rows * weight.inputs, "x is [rows, inputs]");
    assert_eq!(y.len(), rows * weight.outputs, "y is [rows, outputs]");
    if rows > 1 && compute.defect() == Some(Defect::ReductionDependsOnBatch) {
        return multiply_backwards(compute, x, weight, y);
    }
    multiply(compute, x, weight, y);
}

/// `matmul` of shapes that were checked.
pub(super) fn multiply(compute: &Compute, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) {
    let rows = x.len() / weight.inputs;
    match weight.data {
        #[cfg(target_arch = "x86_64")]
        WeightData::Bf16(data) if compute.path() == super::KernelPath::Avx512Bf16 => {
            let x = super::avx512::to_bf16(compute, x);
            tiles(compute, rows, weight, y, |tile, out| super::avx512::tile(&x, data, tile, out));
        }
        WeightData::F32(data) => {
            tiles(compute, rows, weight, y, |tile, out| portable::tile(x, data, tile, out));
        }
        WeightData::Bf16(data) => {
            tiles(compute, rows, weight, y, |tile, out| portable::tile(x, data, tile, out));
        }
        WeightData::F16(data) => {
            tiles(compute, rows, weight, y, |tile, out| portable::tile(x, data, tile, out));
        }
        WeightData::Quantized { format, bytes } => {
            multiply_quantized(compute, x, (format, bytes), [weight.outputs, weight.inputs], y);
        }
    }
}

fn tiles(
    compute: &Compute,
    rows: usize,
    weight: &Matrix<'_>,
    y: &mut [f32],
    tile: impl Fn(Tile, &Output<'_>) + Sync,
) {
    let (outputs, inputs) = (weight.outputs, weight.inputs);
    let output = Output::new(y, outputs);
    compute.split(outputs, 16, rows * outputs * inputs, |outputs| {
        tile(Tile { rows, outputs, inputs }, &output);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::KernelPath;
    use crate::kernels::element::bf16_from_f32;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn reference(x: &[f32], w: &[f32], row: usize, output: usize, inputs: usize) -> f64 {
        (0..inputs)
            .map(|k| f64::from(x[row * inputs + k]) * f64::from(w[output * inputs + k]))
            .sum()
    }

    /// Compares with f64, and each row and output with the same product computed alone.
    fn check(path: KernelPath, rows: usize, outputs: usize, inputs: usize) {
        let compute = Compute::new(2, path).unwrap();
        let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
        let stored: Vec<bf16> = w.iter().map(|v| bf16_from_f32(*v)).collect();
        let widened: Vec<f32> = stored.iter().map(|v| v.widen()).collect();
        let weight = Matrix { data: WeightData::Bf16(&stored), outputs, inputs };
        let mut y = vec![0.0; rows * outputs];
        matmul(&compute, &x, &weight, &mut y);
        for row in 0..rows {
            let mut alone = vec![0.0; outputs];
            let x_row = &x[row * inputs..(row + 1) * inputs];
            matmul(&compute, x_row, &weight, &mut alone);
            assert_eq!(y[row * outputs..(row + 1) * outputs], alone, "{path} row {row}");
            for output in 0..outputs {
                let expected = reference(&x, &widened, row, output, inputs);
                let error = (f64::from(y[row * outputs + output]) - expected).abs();
                let allowed = if path == KernelPath::Portable { 1e-5 } else { 2e-2 };
                let allowed = allowed * (inputs as f64).sqrt();
                assert!(error < allowed, "{path} [{rows}, {outputs}, {inputs}] off by {error}");
            }
        }
    }

    #[test]
    fn products_are_right_and_do_not_depend_on_the_batch() {
        let mut paths = vec![KernelPath::Portable];
        if KernelPath::detect() != KernelPath::Portable {
            paths.push(KernelPath::detect());
        }
        for path in paths {
            for (rows, outputs, inputs) in [
                (1, 1, 1),
                (1, 37, 100),
                (3, 5, 31),
                (4, 64, 72),
                (5, 17, 2500),
                (9, 33, 256),
                (17, 19, 3000),
                (20, 8, 70),
                (90, 9, 3000),
                (70, 130, 96),
            ] {
                check(path, rows, outputs, inputs);
            }
        }
    }
}
