//! Linear layers.

use super::weights::{WeightMatrix, Weights};
use crate::LoadError;
use crate::kernels::{Compute, add_assign, matmul};

/// A product with weights, and a bias where the model has one.
pub struct Linear {
    weight: WeightMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// The layer of this name, `[outputs, inputs]`.
    pub fn load(
        weights: &Weights,
        name: &str,
        [outputs, inputs]: [usize; 2],
        biased: bool,
    ) -> Result<Self, LoadError> {
        let weight = weights.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let bias = biased.then(|| weights.vector(&format!("{name}.bias"), outputs)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Its weights.
    pub fn weight(&self) -> &WeightMatrix {
        &self.weight
    }

    /// Its bias.
    #[cfg(feature = "candle")]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// `[rows, inputs]` to `[rows, outputs]`, which `y` becomes. A bias is added to the finished sum of
    /// a product.
    pub fn apply(&self, compute: &Compute, x: &[f32], y: &mut Vec<f32>) {
        project(compute, x, &self.weight, y);
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
        }
    }
}

/// `[rows, inputs]` to `[rows, outputs]`, which `y` becomes, without a bias.
pub fn project(compute: &Compute, x: &[f32], weight: &WeightMatrix, y: &mut Vec<f32>) {
    let matrix = weight.matrix();
    y.resize(x.len() / matrix.inputs * matrix.outputs, 0.0);
    matmul(compute, x, &matrix, y);
}
