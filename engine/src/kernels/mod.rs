//! CPU arithmetic. Every output element is reduced in one fixed order that depends on nothing but
//! the shapes of its own operands: not on the batch, the chunk, the number of threads or the tile
//! it falls into. That is what makes a request's tokens independent of its company.
//!
//! The products of a reduction are fused into its sum (`mul_add`): rounded once, which is the same on
//! every CPU, fast on those of the last ten years and slow on older ones. All other arithmetic is not
//! fused.

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod compute;
mod defect;
mod element;
mod heads;
mod math;
mod matmul;
mod operands;
mod portable;
mod quantized;
mod rope;
mod rows;
pub mod simd;
mod threads;
mod tile;

pub use activation::{RmsNorm, silu_multiply};
pub use attention::{AttentionShape, QuerySpan, attend};
pub use compute::{Compute, KernelPath};
pub use defect::Defect;
pub use element::Element;
pub use heads::{HeadShape, KvPlanes};
pub use math::exp;
pub use matmul::{Matrix, Product, WeightData, matmul, matmul_all, matmul_swiglu};
pub use quantized::{QuantFormat, QuantizedPath, quantize_q8_0};
pub use rope::{RopePairing, RopeScaling, RopeTable};
pub use rows::split_rows;

/// Changes whenever a kernel's results do; part of the numerics id.
pub const REDUCTION_ORDER: u32 = 2;
