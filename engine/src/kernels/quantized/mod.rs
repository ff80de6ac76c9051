//! Products with quantised weights. Activations are rounded to 8 bits too, 32 at a time, so that sums
//! within a group are exact in integers; groups are then added in order, each by a fused
//! multiplication and addition. So the result is the same on every CPU and at every batch size.
//!
//! Weights are taken 16 outputs at a time (a panel) and brought into one arrangement, whatever their
//! format: four elements of the reduction side by side, of 16 outputs beside each other.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod panel;
mod portable;
mod product;
mod quantize;
#[cfg(target_arch = "x86_64")]
mod unpack;
#[cfg(target_arch = "x86_64")]
mod vector;

pub use activations::Activations;
pub use format::QuantFormat;
pub use product::{QuantizedPath, tile};
pub use quantize::quantize_q8_0;

/// Elements of the reduction whose products are summed in integers.
const GROUP: usize = 32;

/// The largest code of 8 bits; -128 is not used.
const CODE_MAX: f32 = 127.0;

/// Outputs computed beside each other.
const OUTPUTS: usize = 16;

#[cfg(test)]
mod tests;
