//! Products with weights.

use candle_core::{DType, Device, Result, Tensor};

use super::rounding::Rounding;
use crate::model::Linear as StoredLinear;

/// A matrix on the device, `[outputs, inputs]`, and how rows are multiplied with it.
pub struct Product {
    weight: Tensor,
    rounding: Rounding,
    /// See `Shapes::product_rows`.
    rows: Option<usize>,
}

impl Product {
    /// `weight` is as `Rounding::matrix` makes it.
    pub fn new(weight: Tensor, rounding: Rounding, rows: Option<usize>) -> Self {
        Self { weight, rounding, rows }
    }

    /// `[rows, inputs]` to `[rows, outputs]`, both f32.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (count, _) = x.dims2()?;
        let (x, weight) = (self.rounding.operand(x)?, self.weight.t()?);
        let at_once = self.rows.unwrap_or(count);
        let mut tiles = Vec::new();
        for first in (0..count).step_by(at_once) {
            let rows = at_once.min(count - first);
            let tile = x.narrow(0, first, rows)?.pad_with_zeros(0, 0, at_once - rows)?;
            tiles.push(tile.matmul(&weight)?.narrow(0, 0, rows)?);
        }
        self.rounding.result(&Tensor::cat(&tiles, 0)?)
    }
}

/// A product, and a bias where the model has one.
pub struct Linear {
    product: Product,
    bias: Option<Tensor>,
}

impl Linear {
    /// Brings layers to the device as one, whose outputs are theirs beside each other. All of them have
    /// a bias, or none.
    pub fn new(
        stored: &[&StoredLinear],
        device: &Device,
        rounding: Rounding,
        rows: Option<usize>,
    ) -> Result<Self> {
        let weights = stored.iter().map(|stored| rounding.matrix(stored.weight(), device));
        let weight = Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 0)?;
        let biases = stored.iter().filter_map(|stored| stored.bias()).flatten().copied();
        let biases: Vec<f32> = biases.collect();
        let bias = (!biases.is_empty()).then(|| Tensor::new(biases, device)).transpose()?;
        Ok(Self { product: Product::new(weight, rounding, rows), bias })
    }

    /// `[rows, inputs]` to `[rows, outputs]`, both f32. The bias is added to the rounded product.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.product.apply(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// An RMSNorm (Zhang and Sennrich 2019).
pub struct RmsNorm {
    /// f32, as many as a row has elements.
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// Brings a norm's weights to the device.
    pub fn new(weight: &[f32], epsilon: f32, device: &Device) -> Result<Self> {
        Ok(Self { weight: Tensor::new(weight, device)?, epsilon: f64::from(epsilon) })
    }

    /// Normalises the last dimension of `x` (f32).
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        debug_assert_eq!(x.dtype(), DType::F32);
        let mean_square = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
        let scale = (mean_square + self.epsilon)?.sqrt()?.recip()?;
        x.broadcast_mul(&scale)?.broadcast_mul(&self.weight)
    }
}
