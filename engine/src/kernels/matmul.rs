//! Products of activations with weights stored row by row: `y[m, n] = sum over k of x[m, k] w[n, k]`.

use std::ops::Range;

use half::{bf16, f16};

use super::activation::{add_assign, silu_multiply};
use super::defect::multiply_backwards;
use super::operands::Operands;
use super::tile::{Output, Tile};
use super::{Compute, Defect, Element, QuantFormat, portable, quantized};

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
    /// Multiply-adds of a product with `x` (`[rows, inputs]`).
    fn work(&self, x: &[f32]) -> usize {
        x.len() * self.outputs
    }

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

/// One of several products with the same x.
pub struct Product<'a> {
    /// What x is multiplied with.
    pub weight: Matrix<'a>,
    /// Added to finished sums: `[outputs]`.
    pub bias: Option<&'a [f32]>,
    /// What comes out: `[rows, outputs]`.
    pub y: &'a mut [f32],
}

/// Multiplies `x` (`[rows, inputs]`) with `weight` into `y` (`[rows, outputs]`).
pub fn matmul(compute: &Compute, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) {
    matmul_all(compute, x, [Product { weight: *weight, bias: None, y }]);
}

/// Computes several products with `x` (`[rows, inputs]`) as one piece of work: threads wait for each
/// other once, and x is made ready for the weights once.
pub fn matmul_all<const N: usize>(compute: &Compute, x: &[f32], products: [Product<'_>; N]) {
    if compute.defect() == Some(Defect::ReductionDependsOnBatch) {
        return products.into_iter().for_each(|product| defective(compute, x, product));
    }
    let operands = Operands::of(compute, x, products.each_ref().map(|product| product.weight));
    let work = products.each_ref().map(|product| product.weight.work(x));
    let outputs = products.each_ref().map(|product| product.weight.outputs);
    let columns = products.map(|product| Columns::new(x, product));
    compute.split_several(outputs, OUTPUTS_ALIGN, work.iter().sum(), |which, range| {
        columns[which].compute(compute, &operands, range);
    });
}

/// The middle of a feed-forward layer, SwiGLU (Shazeer 2020): `gate.y` becomes
/// `silu(gate(x)) * up(x)`, and `up.y` is scratch. One piece of work, as `matmul_all`.
pub fn matmul_swiglu(compute: &Compute, x: &[f32], gate: Product<'_>, up: Product<'_>) {
    let outputs = gate.weight.outputs;
    assert_eq!(outputs, up.weight.outputs, "gate and up are of one size");
    if compute.defect() == Some(Defect::ReductionDependsOnBatch) {
        let (gated, up_y) = (&mut *gate.y, &mut *up.y);
        defective(compute, x, Product { y: &mut *gated, ..gate });
        defective(compute, x, Product { y: &mut *up_y, ..up });
        return silu_multiply(gated, up_y);
    }
    let work = gate.weight.work(x) + up.weight.work(x);
    let operands = Operands::of(compute, x, [gate.weight, up.weight]);
    let [gate, up] = [gate, up].map(|product| Columns::new(x, product));
    compute.split(outputs, OUTPUTS_ALIGN, work, |range| {
        gate.compute(compute, &operands, range.clone());
        up.compute(compute, &operands, range.clone());
        for row in 0..gate.rows {
            // SAFETY: this thread alone has these columns of both, which are within them.
            let [gate, up] = [&gate, &up].map(|of| unsafe { of.y.columns(row, range.clone()) });
            silu_multiply(gate, up);
        }
    });
}

/// Pieces of work begin at multiples of so many outputs: what kernels compute side by side.
const OUTPUTS_ALIGN: usize = 32;

/// A product of shapes that were checked, some of whose outputs are computed at a time.
struct Columns<'a> {
    weight: Matrix<'a>,
    bias: Option<&'a [f32]>,
    rows: usize,
    y: Output<'a>,
}

impl<'a> Columns<'a> {
    fn new(x: &[f32], Product { weight, bias, y }: Product<'a>) -> Self {
        let rows = x.len() / weight.inputs;
        assert_eq!(x.len(), rows * weight.inputs, "x is [rows, inputs]");
        assert_eq!(y.len(), rows * weight.outputs, "y is [rows, outputs]");
        assert!(bias.is_none_or(|bias| bias.len() == weight.outputs), "bias is [outputs]");
        Self { weight, bias, rows, y: Output::new(y, weight.outputs) }
    }

    /// Some outputs of all rows. No other thread has them.
    fn compute(&self, compute: &Compute, operands: &Operands<'_>, outputs: Range<usize>) {
        let tile = Tile { rows: self.rows, outputs: outputs.clone(), inputs: self.weight.inputs };
        match self.weight.data {
            #[cfg(target_arch = "x86_64")]
            WeightData::Bf16(data) if compute.path() == super::KernelPath::Avx512Bf16 => {
                super::avx512::tile(operands.rounded(), data, tile, &self.y);
            }
            #[cfg(target_arch = "x86_64")]
            WeightData::Bf16(data) if compute.path() == super::KernelPath::AmxBf16 => {
                super::amx::bf16::tile(operands.tiles(), data, tile, &self.y);
            }
            WeightData::F32(data) => portable::tile(operands.x, data, tile, &self.y),
            WeightData::Bf16(data) => portable::tile(operands.x, data, tile, &self.y),
            WeightData::F16(data) => portable::tile(operands.x, data, tile, &self.y),
            WeightData::Quantized { format, bytes } => {
                let (path, codes) = (compute.quantized_path(), operands.codes());
                quantized::tile(path, codes, (format, bytes), tile, &self.y);
            }
        }
        if let Some(bias) = self.bias {
            for row in 0..self.rows {
                // SAFETY: this thread alone has these columns, which are within y.
                let y = unsafe { self.y.columns(row, outputs.clone()) };
                add_assign(y, &bias[outputs.clone()]);
            }
        }
    }
}

/// A product in the wrong order, where there are several rows.
fn defective(compute: &Compute, x: &[f32], Product { weight, bias, y }: Product<'_>) {
    match x.len() > weight.inputs {
        true => multiply_backwards(compute, x, &weight, y),
        false => multiply(compute, x, &weight, y),
    }
    if let Some(bias) = bias {
        y.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
    }
}

/// `matmul` without defects.
pub(super) fn multiply(compute: &Compute, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) {
    let operands = Operands::of(compute, x, [*weight]);
    let columns = Columns::new(x, Product { weight: *weight, bias: None, y });
    compute.split(weight.outputs, OUTPUTS_ALIGN, weight.work(x), |outputs| {
        columns.compute(compute, &operands, outputs);
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
        for path in KernelPath::ALL.into_iter().filter(|path| path.is_available()) {
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
