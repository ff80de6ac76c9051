//! Computes with candle, on the CPU or on a GPU.

use std::sync::Arc;
use std::time::Instant;

use kv_transfer::{HostMemory, KvLayout};

use super::logits::conclude_all;
use super::{Computed, Facts, Runner, Span};
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

    /// A device that fails takes the engine's thread with it, and so the worker: what it had goes on
    /// elsewhere, as when the process is killed.
    fn run(&mut self, spans: &mut [Span<'_>], layout: &KvLayout, memory: &HostMemory) -> Computed {
        let to_compute: Vec<_> = spans.iter().map(Span::for_decoder).collect();
        let _turn = self.model.take_turn();
        let began = Instant::now();
        let computed = self.model.decoder.forward(&to_compute, layout, memory);
        let mut logits = computed.unwrap_or_else(|error| {
            panic!("{} failed, and this worker ends: {error}", self.model.device())
        });
        let spans = conclude_all(spans, &mut logits, &self.facts);
        Computed { spans, took: began.elapsed(), is_simulated: false }
    }
}
