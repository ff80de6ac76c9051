//! Computes with candle, on the CPU or on a GPU.

use std::sync::Arc;
use std::time::Instant;

use kv_transfer::{KvLayout, KvMemory};

use super::logits::conclude_all;
use super::{Computed, Facts, Runner, RunnerError, Span, on_host};
use crate::candle::CandleModel;

/// A model in a device's memory.
pub struct CandleRunner {
    model: Arc<CandleModel>,
    facts: Facts,
}

impl CandleRunner {
    /// Runners of one process share a model.
    pub fn new(model: Arc<CandleModel>) -> Self {
        let facts = Facts::of(&model.config, &model.numerics_id, &model.weights_id);
        Self { model, facts }
    }
}

impl Runner for CandleRunner {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn kv_layout(&self, block_size: usize) -> KvLayout {
        self.model.decoder.kv_layout(&self.facts.numerics_id, block_size)
    }

    fn run(
        &mut self,
        spans: &mut [Span<'_>],
        layout: &KvLayout,
        memory: &KvMemory,
    ) -> Result<Computed, RunnerError> {
        let to_compute: Vec<_> = spans.iter().map(Span::for_decoder).collect();
        let _turn = self.model.take_turn();
        let began = Instant::now();
        let computed = self.model.decoder.forward(&to_compute, layout, on_host(memory));
        let mut logits = computed.map_err(|error| RunnerError::Device {
            device: self.model.device().to_string(),
            problem: error.to_string(),
        })?;
        let spans = conclude_all(spans, &mut logits, &self.facts);
        Ok(Computed { spans, took: began.elapsed(), is_simulated: false })
    }
}
