//! Sources of the kernels, with the constants that a model gives them.

use crate::attention::Sizes;
use crate::blocks::CopyBlocks;
use crate::gemv;
use crate::shape::KernelShape;

/// Kernels that are compiled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Attention over paged KV.
    Attention,
    /// Norms, embeddings, heads, SwiGLU.
    Layer,
    /// Products of few rows with weights.
    Gemv,
    /// Choosing tokens.
    Sampling,
    /// Copies of KV blocks.
    Blocks,
}

/// What a compiler is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which module it is.
    pub module: Module,
    /// CUDA C++ that includes nothing.
    pub text: String,
    /// `NAME=VALUE` of each constant.
    pub defines: Vec<String>,
}

const PRELUDE: &str = include_str!("../kernels/prelude.cuh");

impl Source {
    /// Of what copies KV blocks (`CopyBlocks`): the same for all models, and for none.
    pub fn of_copies() -> Self {
        Self::of(Module::Blocks, &[include_str!("../kernels/blocks.cu")], Vec::new())
    }

    fn of(module: Module, files: &[&str], defines: Vec<String>) -> Self {
        Self { module, text: format!("{PRELUDE}{}", files.concat()), defines }
    }
}

impl Module {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Attention, Self::Layer, Self::Gemv, Self::Sampling, Self::Blocks];

    /// The file that it is in, without its ending.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Layer => "layer",
            Self::Gemv => "gemv",
            Self::Sampling => "sampling",
            Self::Blocks => "blocks",
        }
    }

    /// Its kernels' names.
    pub fn kernels(self) -> Vec<String> {
        let names: &[&str] = match self {
            Self::Attention => &["attend_parts", "merge_parts", "attend_tiles"],
            Self::Layer => &[
                "embed",
                "add_and_normalise",
                "prepare_heads",
                "silu_multiply",
                "take_rows",
                "add_bias",
            ],
            Self::Gemv => return gemv::kernel_names(),
            Self::Sampling => &["sample", "sample_ranked"],
            Self::Blocks => &[CopyBlocks::KERNEL],
        };
        names.iter().map(|name| name.to_string()).collect()
    }

    /// The source for a shape that `KernelShape::check` lets pass.
    pub fn source(self, shape: &KernelShape) -> Source {
        let files: &[&str] = match self {
            Self::Attention if shape.has_tensor_cores() => &[
                include_str!("../kernels/attention.cuh"),
                include_str!("../kernels/tensor_cores.cuh"),
                include_str!("../kernels/attention_mma.cuh"),
                include_str!("../kernels/attention_mma.cu"),
            ],
            Self::Attention => {
                &[include_str!("../kernels/attention.cuh"), include_str!("../kernels/attention.cu")]
            }
            Self::Layer => &[include_str!("../kernels/layer.cu")],
            Self::Gemv => &[include_str!("../kernels/gemv.cu")],
            Self::Sampling => &[include_str!("../kernels/sampling.cu")],
            Self::Blocks => return Source::of_copies(),
        };
        Source::of(self, files, self.defines(shape))
    }

    /// Only what its source uses, so that models share what is compiled.
    fn defines(self, shape: &KernelShape) -> Vec<String> {
        let number = |name: &str, value: usize| format!("{name}={value}");
        let activations = format!("ACT={}", shape.activations.name());
        let weights = format!("WEIGHT={}", shape.weights.name());
        let heads = || {
            vec![
                number("HEAD_DIM", shape.head_dim),
                number("BLOCK_SIZE", shape.block_size),
                format!("KV={}", shape.kv.name()),
            ]
        };
        let more = match self {
            Self::Attention => vec![
                number("GROUP", shape.group()),
                number("TILE_QUERIES", Sizes::of(shape).tile_queries),
                activations,
            ],
            Self::Layer => {
                vec![number("NEIGHBOURS", shape.neighbours.into()), activations, weights]
            }
            Self::Gemv => return vec![activations, weights],
            Self::Sampling => return vec![activations],
            Self::Blocks => return Vec::new(),
        };
        [heads(), more].concat()
    }
}
