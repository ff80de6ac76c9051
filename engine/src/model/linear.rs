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

    /// `[rows, inputs]` to `[rows, outputs]`. A bias is added to the finished sum of a product.
    pub fn apply(&self, compute: &Compute, x: &[f32]) -> Vec<f32> {
        let mut y = project(compute, x, &self.weight);
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(bias.len()).for_each(|row| add_assign(row, bias));
        }
        y
    }
}

/// `[rows, inputs]` to `[rows, outputs]`, without a bias.
pub fn project(compute: &Compute, x: &[f32], weight: &WeightMatrix) -> Vec<f32> {
    let matrix = weight.matrix();
    let mut y = vec![0.0; x.len() / matrix.inputs * matrix.outputs];
    matmul(compute, x, &matrix, &mut y);
    y
}
