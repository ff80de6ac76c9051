//! A model's weights in the memory of a GPU: one allocation, whose content is a function of the model
//! alone.

mod plan;
mod upload;

use std::sync::Arc;

use cuda_driver::{Allocation, Device};
use cuda_kernels::{Dtype, GemvWeights, WeightCode};

use super::CudaFailure;
use super::keeper::{Kept, Launch};
use crate::kernels::WeightData;
use crate::model::{Decoder, WeightMatrix};
use plan::Plan;
use upload::Upload;

/// Where everything lies: offsets into the allocation.
#[derive(Debug)]
pub struct Layout {
    /// What all dense numbers are.
    pub dtype: Dtype,
    /// `[vocabulary_size, hidden_size]`
    pub embedding: usize,
    /// The decoder's layers.
    pub layers: Vec<Layer>,
    /// `[hidden_size]`
    pub final_norm: usize,
    /// To `[vocabulary_size]`.
    pub output: Matrix,
    /// Of the allocation.
    pub bytes: usize,
}

/// One decoder layer; its parts are those of `model::Layer`.
#[derive(Debug)]
pub struct Layer {
    /// `[hidden_size]`
    pub attention_norm: usize,
    /// To `[heads + 2 kv_heads, head_dim]`.
    pub query_key_value: Matrix,
    /// From `[heads, head_dim]`.
    pub attention_output: Matrix,
    /// `[head_dim]`
    pub query_norm: Option<usize>,
    /// `[head_dim]`
    pub key_norm: Option<usize>,
    /// `[hidden_size]`
    pub mlp_norm: usize,
    /// To `[2, intermediate_size]`.
    pub gate_up: Matrix,
    /// From `[intermediate_size]`.
    pub down: Matrix,
    /// Tokens that a token sees; all where absent.
    pub window: Option<usize>,
}

/// A matrix `[outputs, inputs]`, and the bias of its product.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Rows.
    pub outputs: usize,
    /// Elements of a row.
    pub inputs: usize,
    /// Where the numbers, or their codes, lie.
    pub at: usize,
    /// How numbers are coded, where they are.
    pub code: Option<Code>,
    /// `[outputs]`
    pub bias: Option<usize>,
}

/// How the numbers of a matrix are coded in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// How one is.
    pub code: WeightCode,
    /// Where scales lie: f32 `[outputs, inputs / group]`.
    pub scales: usize,
    /// Elements that share a scale.
    pub group: usize,
}

/// As what matrices lie on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As their files have them: codes of `Q8_0` stay, other quantised ones are widened.
    AsStored,
    /// Matrices are rounded to FP8, with a scale for up to 128; not the embedding.
    Fp8,
}

/// Weights on a GPU.
pub struct Weights {
    /// Where everything lies.
    pub layout: Layout,
    memory: Memory,
}

enum Memory {
    /// This process's.
    Own(Allocation),
    /// Another's.
    Kept(Kept),
}

impl Weights {
    /// Brings a decoder's weights to a GPU. Errors: there is no room for them.
    pub fn upload(
        stored: &Decoder,
        device: &Arc<Device>,
        format: WeightFormat,
    ) -> Result<Self, CudaFailure> {
        let (layout, memory) = upload(stored, device, format)?;
        Ok(Self { layout, memory: Memory::Own(memory) })
    }

    /// Uses those that a keeper has, which is started where there is none; its own where that has too
    /// many users. `weights_id` names the model. Errors: a sentence.
    pub fn kept(
        stored: &Decoder,
        device: &Arc<Device>,
        format: WeightFormat,
        launch: &Launch,
        weights_id: &str,
    ) -> Result<Self, String> {
        let layout = Plan::new(stored, format).layout(stored);
        let uuid = device.uuid().map_err(|error| error.to_string())?;
        // All that decides which bytes lie where.
        let content = format!("{weights_id} {layout:?} {}", env!("CARGO_PKG_VERSION"));
        let name = format!("weights-{uuid}-{}", &blake3::hash(content.as_bytes()).to_hex()[..16]);
        match Kept::find(device, launch, &name)? {
            Some(kept) => Ok(Self { layout, memory: Memory::Kept(kept) }),
            None => Self::upload(stored, device, format).map_err(|error| error.to_string()),
        }
    }

    /// Whether they are gone, with the process that kept them.
    pub fn are_gone(&self) -> bool {
        matches!(&self.memory, Memory::Kept(kept) if kept.is_gone())
    }

    /// The address of what lies at an offset.
    pub fn address(&self, at: usize) -> u64 {
        let base = match &self.memory {
            Memory::Own(memory) => memory.address(),
            Memory::Kept(kept) => kept.address(),
        };
        base + at as u64
    }

    /// The same of what may be absent: null there.
    pub fn address_or_null(&self, at: Option<usize>) -> u64 {
        at.map_or(0, |at| self.address(at))
    }

    /// A matrix as products want to see it.
    pub fn of_matrix(&self, matrix: &Matrix) -> GemvWeights {
        let at = self.address(matrix.at);
        let Some(Code { code, scales, group }) = matrix.code else {
            return GemvWeights::Dense { weights: at, dtype: self.layout.dtype };
        };
        let (codes, scales) = (at, self.address(scales));
        match code {
            WeightCode::Int8 => GemvWeights::Int8 { codes, scales, group },
            WeightCode::Fp8 => GemvWeights::Fp8 { codes, scales, group },
        }
    }
}

/// Brings a decoder's weights to a GPU, and says where they lie. Errors: there is no room for them.
pub fn upload(
    stored: &Decoder,
    device: &Arc<Device>,
    format: WeightFormat,
) -> Result<(Layout, Allocation), CudaFailure> {
    let mut plan = Plan::new(stored, format);
    let layout = plan.layout(stored);
    let memory = Allocation::new(device, layout.bytes)?;
    let mut upload = Upload::new(memory.address(), device)?;
    for part in &plan.parts {
        part.write(plan.dtype, &mut upload)?;
    }
    upload.finish()?;
    Ok((layout, memory))
}

/// For a model whose matrices are like this one.
pub fn dtype_of(matrix: &WeightMatrix) -> Dtype {
    match matrix.matrix().data {
        WeightData::F32(_) => Dtype::F32,
        WeightData::F16(_) => Dtype::F16,
        // Some models' activations are too large for f16.
        WeightData::Bf16(_) | WeightData::Quantized { .. } => Dtype::Bf16,
    }
}
