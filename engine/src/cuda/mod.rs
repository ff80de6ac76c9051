//! A decoder on an NVIDIA GPU: our kernels, and cuBLAS for products of many rows.
//!
//! Nothing of it is linked: the driver, the run-time compiler of the kernels (NVRTC) and cuBLAS are
//! found when a GPU is asked for, so that one binary serves machines with and without. The residual
//! stream, norms, rotations, softmax and SwiGLU are f32; what goes into a product and comes out of it
//! is rounded to the weights' type, and what tensor cores multiply in attention to that of KV.
//! Attention, norms and sampling give a row the same bits in any company; products do where shapes are
//! fixed (`Numerics`).
//!
//! A step is: its numbers packed and copied (`step`), the layers and the choice of tokens put on a
//! stream (`decoder`), and one wait for the tokens (`computing`). Steps that only decode come in few
//! shapes, whose work is captured once and then submitted as one.

mod buffers;
mod card;
mod computing;
mod cublas;
mod decoder;
mod keeper;
mod step;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cuda_driver::{CudaError, Device};
use cuda_kernels::LaunchError;
use kv_transfer::cuda::CudaMemory;
use parking_lot::{FairMutex, FairMutexGuard};

use crate::model::{Model, ModelConfig};
use crate::probe::Probe;
use crate::{KernelPath, LoadError, Numerics};
use buffers::StepSizes;
use card::Card;
pub use card::{Libraries, copy_kernel};
pub use computing::{Computing, Row};
use decoder::CudaDecoder;
pub use keeper::Launch as KeeperLaunch;
pub use weights::WeightFormat;
use weights::Weights;

/// How a model is brought to a GPU.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// As the driver counts GPUs, from 0.
    pub ordinal: u32,
    /// Whether a token's arithmetic may depend on its company.
    pub numerics: Numerics,

    /// As what matrices lie on the GPU.
    pub weights: WeightFormat,
    /// Where compiled kernels are kept, if anywhere: a directory that nobody else may write to.
    pub kernel_cache: Option<PathBuf>,
    /// Where NVIDIA's libraries are.
    pub libraries: Libraries,
    /// How the process is started that keeps the weights for others too; none: this one has its own.
    pub keeper: Option<KeeperLaunch>,
}

/// A model whose weights lie in a GPU's memory. Shared by all workers of a process that compute on
/// this GPU.
pub struct CudaModel {
    /// What its configuration says.
    pub config: ModelConfig,
    /// Tokens and KV are equal within one id.
    pub numerics_id: String,
    /// The part of it that is the same on every device.
    pub weights_id: String,
    /// The layers.
    pub decoder: CudaDecoder,
    card: Card,
    turn: FairMutex<()>,
}

/// What a GPU, or its libraries, did not do.
#[derive(Debug, thiserror::Error)]
pub enum CudaFailure {
    /// The driver.
    #[error(transparent)]
    Driver(CudaError),
    /// A step is too large for a kernel.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// cuBLAS.
    #[error("{call} of cuBLAS failed: {status}")]
    Cublas {
        /// Its function.
        call: &'static str,
        /// In its words.
        status: String,
    },
    /// Kernels do not compile, or do not load: a sentence.
    #[error("{0}")]
    Kernels(String),
    /// The process that kept the weights has ended.
    #[error("the weights are gone with the process that kept them (--share-weights)")]
    WeightsGone,
    /// A kernel that was not loaded.
    #[error("there is no kernel {0}")]
    NoKernel(String),
}

impl CudaModel {
    /// Loads a model directory in Hugging Face layout, or a GGUF file, onto a GPU. Errors: one sentence
    /// for the user.
    pub fn load(model: &Path, options: &CudaOptions) -> Result<Self, LoadError> {
        // Its files stay mapped only until they are on the GPU.
        Self::of(&Model::load(model, KernelPath::Portable)?, options)
    }

    /// The same of a model that is open already.
    pub fn of(model: &Model, options: &CudaOptions) -> Result<Self, LoadError> {
        let refused = refused(options.ordinal);
        let CudaOptions { ordinal, numerics, weights: format, libraries, kernel_cache, keeper } =
            options;
        decoder::check_sizes(&model.config).map_err(LoadError::Unsuited)?;
        let card = Card::open(*ordinal, libraries, kernel_cache.as_deref()).map_err(refused)?;
        let (stored, device) = (&model.decoder, &card.device);
        let weights = match keeper {
            None => Weights::upload(stored, device, *format).map_err(|error| error.to_string()),
            Some(launch) => Weights::kept(stored, device, *format, launch, &model.weights_id),
        };
        let decoder = CudaDecoder::new(stored, weights.map_err(refused)?, *numerics);
        let shape = decoder.kernel_shape(Probe::BLOCK_SIZE, card.shared_bytes_max());
        shape.check().map_err(|error| LoadError::Unsuited(error.to_string()))?;
        let weights_id = match format {
            WeightFormat::AsStored => model.weights_id.clone(),
            WeightFormat::Fp8 => format!("{}-fp8", model.weights_id),
        };
        let mut loaded = Self {
            config: model.config.clone(),
            numerics_id: String::new(),
            weights_id,
            decoder,
            card,
            turn: FairMutex::new(()),
        };
        let probe = loaded.probe(*numerics).map_err(refused)?;
        let (kind, dtype) = (loaded.card.kind(), loaded.decoder.dtype().name());
        let shapes = match numerics {
            Numerics::Fixed => format!("fixed{}", buffers::PRODUCT_ROWS),
            Numerics::Fast => "fast".to_string(),
        };
        let shape = loaded.decoder.kernel_shape(Probe::BLOCK_SIZE, loaded.card.shared_bytes_max());
        let attention = if shape.has_tensor_cores() { "-mma" } else { "" };
        let weights_id = &loaded.weights_id;
        loaded.numerics_id =
            format!("{weights_id}-cuda-{kind}-{dtype}-{shapes}{attention}-{probe}");
        Ok(loaded)
    }

    /// Keeps a model's weights on a GPU for whoever connects to `socket`, and returns when nobody has
    /// used them for `grace`. Says so on standard output when they are there. Errors: one sentence for
    /// the user.
    pub fn keep(
        model: &Model,
        format: WeightFormat,
        ordinal: u32,
        libraries: &Libraries,
        socket: &Path,
        grace: Duration,
    ) -> Result<(), LoadError> {
        let refused = refused(ordinal);
        let device = card::open_device(ordinal, libraries).map_err(refused)?;
        let uploaded = weights::upload(&model.decoder, &device, format);
        let (_, memory) = uploaded.map_err(|error| refused(error.to_string()))?;
        keeper::keep(&memory, socket, grace).map_err(refused)
    }

    /// The GPU's UUID, or that of the instance (MIG) that it is.
    pub fn uuid(&self) -> Result<String, CudaError> {
        self.device().uuid()
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.card.device
    }

    /// What one worker computes in. Errors: it does not fit.
    pub fn computing(
        &self,
        block_size: usize,
        rows: usize,
        sequences: usize,
        context_tokens: usize,
    ) -> Result<Computing, CudaFailure> {
        let sizes = StepSizes { rows: rows.max(sequences), sequences, context_tokens };
        Computing::new(&self.card, &self.decoder, block_size, &sizes)
    }

    /// Bytes of the GPU that `computing` takes.
    pub fn step_bytes(
        &self,
        block_size: usize,
        rows: usize,
        sequences: usize,
        context_tokens: usize,
    ) -> usize {
        let sizes = StepSizes { rows: rows.max(sequences), sequences, context_tokens };
        let shape = self.decoder.kernel_shape(block_size, self.card.shared_bytes_max());
        Computing::bytes(&self.decoder, &shape, &sizes)
    }

    /// Waits for this engine's turn; the turn ends when the guard is dropped. Steps of several engines
    /// beside each other would only make each slower and its duration noise.
    pub fn take_turn(&self) -> FairMutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// The fingerprint of what it computes. Errors: a sentence.
    fn probe(&self, numerics: Numerics) -> Result<String, String> {
        let layout = self.decoder.kv_layout("", Probe::BLOCK_SIZE);
        let probe = Probe::new(layout, self.config.vocabulary_size);
        let blocks = probe.blocks();
        let memory = CudaMemory::new(self.device(), blocks, probe.layout.block_bytes());
        let memory = memory.map_err(|error| error.to_string())?;
        let tokens = blocks * Probe::BLOCK_SIZE;
        let computing = self.computing(Probe::BLOCK_SIZE, tokens, 2, tokens);
        let mut computing = computing.map_err(|error| error.to_string())?;
        probe.run(numerics, |spans, layout| {
            let wanted: usize = spans.iter().map(|span| span.logits).sum();
            let rows = computing.run(&self.decoder, spans, layout, &memory, &vec![None; wanted]);
            let rows = rows.map_err(|error| error.to_string())?;
            Ok(rows.into_iter().flat_map(Row::into_logits).collect())
        })
    }
}

/// The sentence for a GPU that will not do.
fn refused(ordinal: u32) -> impl Fn(String) -> LoadError + Copy {
    move |problem| LoadError::Device { device: format!("CUDA device {ordinal}"), problem }
}
