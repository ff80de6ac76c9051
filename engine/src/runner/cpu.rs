//! Computes with this crate's CPU kernels.

use std::sync::Arc;
use std::time::Instant;

use kv_transfer::{KvLayout, KvMemory};

use super::logits::conclude_all;
use super::{Computed, Facts, Runner, RunnerError, Span, on_host};
use crate::kernels::Compute;
use crate::model::Model;

/// A model on the threads of this process.
pub struct CpuRunner {
    model: Arc<Model>,
    compute: Arc<Compute>,
    facts: Facts,
}

impl CpuRunner {
    /// Runners of one process share models and threads.
    pub fn new(model: Arc<Model>, compute: Arc<Compute>) -> Self {
        let facts = Facts::of(&model.config, &model.numerics_id, &model.weights_id);
        Self { model, compute, facts }
    }
}

impl Runner for CpuRunner {
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
        let Self { model, compute, .. } = self;
        let _turn = compute.take_turn();
        let began = Instant::now();
        let mut logits = model.decoder.forward(compute, &to_compute, layout, on_host(memory));
        let spans = conclude_all(spans, &mut logits, &self.facts);
        Ok(Computed { spans, took: began.elapsed(), is_simulated: false })
    }
}
