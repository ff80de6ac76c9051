//! How products of few rows with weights are launched. An output's bits do not depend on the number of
//! rows; `kernels/gemv.cu` says in which order they are summed.

use crate::launch::{Argument, Launch, LaunchError, count, multiple_of};
use crate::shape::Dtype;

/// Rows of one launch.
pub const GEMV_ROWS_MAX: usize = 8;

const WARPS: usize = 4;
const OUTPUTS_PER_WARP: usize = 2;
const WARP: usize = 32;
/// Weights are read by so many bytes.
const VECTOR_BYTES: usize = 16;

/// Where weights lie, `[outputs, inputs]`, and how they are stored.
#[derive(Clone, Copy, Debug)]
pub enum GemvWeights {
    /// As the module's weights are.
    Dense {
        /// The numbers.
        weights: u64,
        /// What they are.
        dtype: Dtype,
    },
    /// Numbers of two's complement, times their group's scale.
    Int8 {
        /// i8.
        codes: u64,
        /// f32 `[outputs, inputs / group]`.
        scales: u64,
        /// Elements that share a scale: a multiple of 16 that divides `inputs`.
        group: usize,
    },
    /// FP8 (e4m3), times their group's scale.
    Fp8 {
        /// A byte each.
        codes: u64,
        /// f32 `[outputs, inputs / group]`.
        scales: u64,
        /// Elements that share a scale: a multiple of 16 that divides `inputs`.
        group: usize,
    },
}

/// `y = x weights^T + bias`. Fields that are addresses say what lies there.
#[derive(Clone, Copy, Debug)]
pub struct Gemv {
    /// Rows of x, from 1 to `GEMV_ROWS_MAX`.
    pub rows: usize,
    /// Elements of a row of y.
    pub outputs: usize,
    /// Elements of a row of x: whole vectors of 16 bytes of weights.
    pub inputs: usize,
    /// Activations `[rows, outputs]`.
    pub y: u64,
    /// Activations `[rows, inputs]`.
    pub x: u64,
    /// The matrix.
    pub weights: GemvWeights,
    /// Weights `[outputs]`, or null.
    pub bias: u64,
}

const FORMATS: [&str; 3] = ["dense", "int8", "fp8"];

pub(crate) fn kernel_names() -> Vec<String> {
    let of = |format| (1..=GEMV_ROWS_MAX).map(move |rows| format!("gemv_{format}_{rows}"));
    let widened = ["widen_int8", "widen_fp8"].map(String::from);
    FORMATS.iter().flat_map(of).chain(widened).collect()
}

/// Coded weights as activations, for products of many rows. Fields that are addresses say what lies
/// there.
#[derive(Clone, Copy, Debug)]
pub struct WidenWeights {
    /// Activations `[outputs, inputs]`.
    pub out: u64,
    /// Coded ones.
    pub weights: GemvWeights,
    /// How many numbers.
    pub count: usize,
}

impl WidenWeights {
    /// Nothing where weights are dense. Errors: counts or groups that vectors do not divide.
    pub fn launch(&self) -> Result<Option<Launch>, LaunchError> {
        const WIDEN: &str = "widen";
        const THREADS: usize = 128;
        let (kernel, codes, scales, group) = match self.weights {
            GemvWeights::Dense { .. } => return Ok(None),
            GemvWeights::Int8 { codes, scales, group } => ("widen_int8", codes, scales, group),
            GemvWeights::Fp8 { codes, scales, group } => ("widen_fp8", codes, scales, group),
        };
        multiple_of(WIDEN, "elements of a group", group, VECTOR_BYTES)?;
        multiple_of(WIDEN, "weights", self.count, group)?;
        let blocks = self.count.div_ceil(VECTOR_BYTES * THREADS);
        Ok(Some(Launch {
            kernel: kernel.into(),
            grid: [count(WIDEN, "weights", blocks)?, 1, 1],
            threads: THREADS as u32,
            shared_bytes: 0,
            arguments: vec![
                Argument::Pointer(self.out),
                Argument::Pointer(codes),
                Argument::Pointer(scales),
                Argument::U64(self.count as u64),
                Argument::U32(count(WIDEN, "elements of a group", group)?),
            ],
        }))
    }
}

impl Gemv {
    /// Errors: too many rows; inputs or groups that vectors do not divide.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const GEMV: &str = "gemv";
        if !(1..=GEMV_ROWS_MAX).contains(&self.rows) {
            let (what, count, max) = ("rows", self.rows, GEMV_ROWS_MAX);
            return Err(LaunchError::TooMany { kernel: GEMV, what, count, max });
        }
        let (format, weights, scales, vector, group) = match self.weights {
            GemvWeights::Dense { weights, dtype } => {
                (FORMATS[0], weights, 0, VECTOR_BYTES / dtype.bytes(), self.inputs)
            }
            GemvWeights::Int8 { codes, scales, group } => {
                (FORMATS[1], codes, scales, VECTOR_BYTES, group)
            }
            GemvWeights::Fp8 { codes, scales, group } => {
                (FORMATS[2], codes, scales, VECTOR_BYTES, group)
            }
        };
        multiple_of(GEMV, "elements of a group", group, vector)?;
        multiple_of(GEMV, "elements of a row", self.inputs, group)?;
        let blocks = self.outputs.div_ceil(WARPS * OUTPUTS_PER_WARP);
        Ok(Launch {
            kernel: format!("gemv_{format}_{}", self.rows),
            grid: [count(GEMV, "outputs", blocks)?, 1, 1],
            threads: (WARPS * WARP) as u32,
            shared_bytes: 0,
            arguments: vec![
                Argument::Pointer(self.y),
                Argument::Pointer(self.x),
                Argument::Pointer(weights),
                Argument::Pointer(scales),
                Argument::Pointer(self.bias),
                Argument::U32(count(GEMV, "outputs", self.outputs)?),
                Argument::U32(count(GEMV, "elements of a row", self.inputs)?),
                Argument::U32(count(GEMV, "elements of a group", group)?),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warp_has_two_outputs_of_all_rows() {
        let dense = GemvWeights::Dense { weights: 0, dtype: Dtype::Bf16 };
        let gemv =
            Gemv { rows: 3, outputs: 4097, inputs: 4096, y: 0, x: 0, weights: dense, bias: 0 };
        let launch = gemv.launch().unwrap();
        assert_eq!((launch.kernel.as_str(), launch.grid), ("gemv_dense_3", [513, 1, 1]));
        let fp8 = |group| GemvWeights::Fp8 { codes: 0, scales: 0, group };
        assert!(Gemv { weights: fp8(128), ..gemv }.launch().is_ok());
        assert!(Gemv { weights: fp8(24), ..gemv }.launch().is_err(), "half a vector");
        assert!(Gemv { weights: fp8(96), ..gemv }.launch().is_err(), "a part of a group");
        assert!(Gemv { weights: fp8(0), ..gemv }.launch().is_err());
        assert!(Gemv { inputs: 4100, ..gemv }.launch().is_err());
        assert!(Gemv { rows: 0, ..gemv }.launch().is_err());
        assert!(Gemv { rows: 9, ..gemv }.launch().is_err());
    }
}
