//! Linear layers.

use super::weights::{WeightMatrix, Weights};
use crate::LoadError;
use crate::kernels::Product;

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
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The product with `rows` rows of x that makes `y` `[rows, outputs]`. A bias is added to its
    /// finished sums.
    pub fn product<'a>(&'a self, rows: usize, y: &'a mut Vec<f32>) -> Product<'a> {
        Product { bias: self.bias.as_deref(), ..product(rows, &self.weight, y) }
    }
}

/// The same without a bias.
pub fn product<'a>(rows: usize, weight: &'a WeightMatrix, y: &'a mut Vec<f32>) -> Product<'a> {
    let weight = weight.matrix();
    y.resize(rows * weight.outputs, 0.0);
    Product { weight, bias: None, y }
}
