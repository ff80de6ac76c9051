//! Wrong kernels, for tests of the tests: what compares bits must notice these. No command can
//! ask for them.

use super::matmul::multiply;
use super::{Compute, Matrix, WeightData};

/// What `Compute::with_defect` does wrong.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Products of several rows are reduced backwards, so that a token's last bits depend on
    /// whether others are computed beside it.
    ReductionDependsOnBatch,
}

/// `matmul` with each reduction turned around: the same products, in other lanes.
pub fn multiply_backwards(compute: &Compute, x: &[f32], weight: &Matrix<'_>, y: &mut [f32]) {
    let inputs = weight.inputs;
    let x = backwards(x, inputs);
    let mut multiply_by = |data| multiply(compute, &x, &Matrix { data, ..*weight }, y);
    match weight.data {
        WeightData::F32(data) => multiply_by(WeightData::F32(&backwards(data, inputs))),
        WeightData::Bf16(data) => multiply_by(WeightData::Bf16(&backwards(data, inputs))),
        WeightData::F16(data) => multiply_by(WeightData::F16(&backwards(data, inputs))),
        WeightData::Quantized { .. } => {
            let mut data = vec![0.0; weight.outputs * inputs];
            for (index, row) in data.chunks_exact_mut(inputs).enumerate() {
                weight.copy_row(index, row);
            }
            multiply_by(WeightData::F32(&backwards(&data, inputs)));
        }
    }
}

fn backwards<E: Copy>(rows: &[E], row_len: usize) -> Vec<E> {
    rows.chunks_exact(row_len).flat_map(|row| row.iter().rev().copied()).collect()
}
