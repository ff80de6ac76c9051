//! CPU arithmetic. Every output element is reduced in one fixed order that depends on nothing but
//! the shapes of its own operands: not on the batch, the chunk, the number of threads or the tile
//! it falls into. That is what makes a request's tokens independent of its company.

mod activation;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod compute;
mod defect;
mod element;
mod math;
mod matmul;
mod portable;
mod quantized;
mod rope;
mod tile;

pub use activation::{add_assign, rms_norm, silu_multiply};
pub use attention::{AttentionShape, QueryRow, attend};
pub use compute::{Compute, KernelPath};
pub use defect::Defect;
pub use element::Element;
pub use math::exp;
pub use matmul::{Matrix, WeightData, matmul};
pub use quantized::{QuantFormat, QuantizedPath};
pub use rope::{RopePairing, RopeScaling, RopeTable, rotate};

/// Changes whenever a kernel's results do; part of the numerics id.
pub const REDUCTION_ORDER: u32 = 1;
