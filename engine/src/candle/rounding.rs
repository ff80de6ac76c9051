//! How numbers are rounded on their way through a layer.
//!
//! The residual stream, norms, rotations, softmax and SwiGLU are f32. What goes into a product is
//! rounded to the weights' type, and so is what comes out of it: that is what a GPU's matrix units
//! do. Sums within a product are f32. Where a device has no products of that type, as candle has
//! none of bf16 on the CPU, the rounded numbers are multiplied as f32.

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels::WeightData;
use crate::model::WeightMatrix;

/// The types that numbers are rounded to.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// Of weights, of what goes into products and out of them, and of KV.
    pub dtype: DType,
    /// In which products are computed.
    product: DType,
}

impl Rounding {
    /// For a model whose matrices are like this one.
    pub fn of(matrix: &WeightMatrix, device: &Device) -> Self {
        let dtype = match matrix.matrix().data {
            WeightData::F32(_) => DType::F32,
            WeightData::F16(_) => DType::F16,
            // Some models' activations are too large for f16.
            WeightData::Bf16(_) | WeightData::Quantized { .. } => DType::BF16,
        };
        Self { dtype, product: if device.is_cpu() { DType::F32 } else { dtype } }
    }

    /// A matrix (`[outputs, inputs]`) on the device, ready for products.
    pub fn matrix(&self, matrix: &WeightMatrix, device: &Device) -> Result<Tensor> {
        let shape = matrix.shape();
        let matrix = matrix.matrix();
        let tensor = match matrix.data {
            WeightData::F32(data) => Tensor::from_slice(data, &shape, device)?,
            WeightData::Bf16(data) => Tensor::from_slice(data, &shape, device)?,
            WeightData::F16(data) => Tensor::from_slice(data, &shape, device)?,
            WeightData::Quantized { .. } => {
                let [outputs, inputs] = shape;
                let mut numbers = vec![0.0; outputs * inputs];
                for (index, row) in numbers.chunks_exact_mut(inputs).enumerate() {
                    matrix.copy_row(index, row);
                }
                Tensor::from_vec(numbers, &shape, device)?
            }
        };
        self.operand(&tensor)
    }

    /// Numbers as they go into a product.
    pub fn operand(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(self.dtype)?.to_dtype(self.product)
    }

    /// What came out of a product, as f32.
    pub fn result(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(self.dtype)?.to_dtype(DType::F32)
    }
}
