//! A decoder on candle's tensors: the same model as `model::Decoder`, on whatever device candle has.
//!
//! It is what our own kernels are compared with: on the CPU in tests, and on a GPU by who builds it
//! with CUDA. It computes models too whose sizes our kernels for GPUs do not take.

mod attention;
mod decoder;
mod device;
mod kv;
mod product;
mod rounding;
mod shapes;

use std::path::Path;

use kv_transfer::HostMemory;
use parking_lot::{FairMutex, FairMutexGuard};

use crate::model::{Model, ModelConfig};
use crate::probe::Probe;
use crate::{KernelPath, LoadError, Numerics};
pub use decoder::CandleDecoder;
pub use device::CandleDevice;

/// What of candle's version decides how sums are rounded; part of the numerics id.
const CANDLE_VERSION: &str = "0.11.1";

/// A model whose weights lie in a device's memory. Shared by all workers of a process that compute
/// on this device.
pub struct CandleModel {
    /// What its configuration says.
    pub config: ModelConfig,
    /// The layers.
    pub decoder: CandleDecoder,
    /// Tokens and KV are equal within one id.
    pub numerics_id: String,
    /// The part of it that is the same on every device.
    pub weights_id: String,
    device: CandleDevice,
    turn: FairMutex<()>,
}

impl CandleModel {
    /// Loads a model directory in Hugging Face layout, or a GGUF file, onto a device. Errors: one
    /// sentence for the user.
    pub fn load(model: &Path, device: CandleDevice, numerics: Numerics) -> Result<Self, LoadError> {
        let opened = device.open()?;
        // Its files stay mapped only until they are on the device.
        let Model { config, decoder, weights_id, .. } = Model::load(model, KernelPath::Portable)?;
        let failed = |error| device.failed(&error);
        let decoder = CandleDecoder::new(&decoder, &opened, numerics).map_err(failed)?;
        let probe = probed(&decoder, numerics).map_err(|problem| device.refused(problem))?;
        let (kind, dtype) = (device.kind(&opened).map_err(failed)?, decoder.dtype().as_str());
        let shapes = decoder.shapes();
        let numerics_id =
            format!("{weights_id}-candle{CANDLE_VERSION}-{kind}-{dtype}-{shapes}-{probe}");
        let turn = FairMutex::new(());
        Ok(Self { config, decoder, numerics_id, weights_id, device, turn })
    }

    /// What it computes on.
    pub fn device(&self) -> CandleDevice {
        self.device
    }

    /// Waits for this engine's turn; the turn ends when the guard is dropped. Steps of several engines
    /// beside each other would only make each slower and its duration noise.
    pub fn take_turn(&self) -> FairMutexGuard<'_, ()> {
        self.turn.lock()
    }
}

/// The fingerprint of what a decoder computes on its device. Errors: a sentence.
fn probed(decoder: &CandleDecoder, numerics: Numerics) -> Result<String, String> {
    let probe = Probe::new(decoder.kv_layout("", Probe::BLOCK_SIZE), decoder.vocabulary_size());
    let blocks = probe.blocks();
    let memory = HostMemory::new(blocks, probe.layout.block_bytes());
    let memory = memory.map_err(|error| format!("no memory for a probe: {error}"))?;
    probe.run(numerics, |spans, layout| {
        decoder.forward(spans, layout, &memory).map_err(|error| error.to_string())
    })
}
