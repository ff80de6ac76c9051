//! The CUDA kernels of our own: their sources, compiled for the card found by NVRTC at run time, and
//! how each is launched.
//!
//! This crate calls no driver: a [`Launch`] says everything that `cuLaunchKernel` wants to know, so
//! that tests run the very same sources and launches on a CPU (`cuda-driver/fake`).

mod attention;
mod blocks;
mod cache;
mod gemv;
mod launch;
mod nvrtc;
mod prepare;
mod quantize;
mod sampling;
mod shape;
mod source;

pub use attention::{
    AttendRows, AttendTiles, KvPlanes, PART_TOKENS, Partials, Span, Tables, Tile, parts_of, tiles,
};
pub use blocks::{COPIED_BLOCKS_MAX, CopyBlocks};
pub use cache::KernelCache;
pub use gemv::{GEMV_ROWS_MAX, Gemv, GemvWeights, WidenWeights};
pub use launch::{Argument, Launch, LaunchError, SHARED_BYTES_WITHOUT_OPT_IN};
pub use nvrtc::{CompileError, Compiled, Nvrtc};
pub use prepare::{AddAndNormalise, AddBias, Embed, PrepareHeads, SiluMultiply, TakeRows};
pub use quantize::{QuantizedMatrix, WeightCode, quantize_rows};
pub use sampling::{
    CANDIDATES_MAX, NOT_DECIDED, RowSampling, SAMPLING_BYTES, Sample, sampling_bytes,
};
pub use shape::{Dtype, KernelShape, UnsupportedShape};
pub use source::{Module, Source};

/// The table of a row that is padding, and its slot: nothing is read or written for it.
pub const NOBODY: u32 = u32::MAX;
