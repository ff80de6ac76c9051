//! In which shapes sums are computed, so that they do or do not depend on company.
//!
//! A library chooses how it cuts a product by the product's shape: the same row may be summed in
//! another order when there are other rows beside it, or another context. Where shapes are fixed,
//! every product has one shape, whatever the batch: rows are taken so many at a time, the last ones
//! with zeros beside them, and a context in pieces that begin at multiples of their length.

use std::fmt;

use candle_core::Device;

use crate::Numerics;

/// The shapes of a device's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Rows of a product with weights; as many as there are where absent.
    pub product_rows: Option<usize>,
    /// Queries of a sequence that attend together, and positions that they attend to at once; all
    /// where absent.
    pub attention: Option<AttentionTile>,
}

/// A piece of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionTile {
    /// Queries; the first one's position is a multiple of it.
    pub queries: usize,
    /// Positions; the first one is a multiple of it.
    pub positions: usize,
}

impl Shapes {
    /// Rows that cost little where there are fewer: a CPU pays for each, a GPU reads the weights once
    /// for all of them.
    pub fn of(numerics: Numerics, device: &Device) -> Self {
        let (rows, queries, positions) =
            if device.is_cpu() { (16, 16, 128) } else { (64, 16, 512) };
        let attention = AttentionTile { queries, positions };
        match numerics {
            Numerics::Fixed => Self { product_rows: Some(rows), attention: Some(attention) },
            Numerics::Fast => Self { product_rows: None, attention: None },
        }
    }
}

/// As the numerics id has it.
impl fmt::Display for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { product_rows: Some(rows), attention: Some(tile) } => {
                write!(f, "fixed{rows}.{}.{}", tile.queries, tile.positions)
            }
            _ => f.write_str("fast"),
        }
    }
}
