//! Computes with this crate's CPU kernels.

use std::sync::Arc;
use std::time::Instant;

use kv_transfer::{HostMemory, KvLayout};
use protocol::v1::Token;

use super::{Computed, Facts, Runner, Span};
use crate::kernels::Compute;
use crate::model::{self, Model};
use crate::sampler;

/// A model on the threads of this process.
pub struct CpuRunner {
    model: Arc<Model>,
    compute: Arc<Compute>,
    facts: Facts,
}

impl CpuRunner {
    /// Runners of one process share models and threads.
    pub fn new(model: Arc<Model>, compute: Arc<Compute>) -> Self {
        let facts = Facts {
            numerics_id: model.numerics_id.clone(),
            weights_id: model.weights_id.clone(),
            vocabulary_size: model.config.vocabulary_size,
            context_tokens: model.config.context_tokens,
            eos_token_ids: model.config.eos_token_ids.clone(),
        };
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

    fn run(&mut self, spans: &[Span<'_>], layout: &KvLayout, memory: &HostMemory) -> Computed {
        let to_compute: Vec<model::Span<'_>> = spans.iter().map(for_decoder).collect();
        let Self { model, compute, .. } = self;
        let _turn = compute.take_turn();
        let began = Instant::now();
        let mut logits =
            compute.run(|| model.decoder.forward(compute, &to_compute, layout, memory));
        let rows = logits.chunks_exact_mut(self.facts.vocabulary_size);
        let choices = spans.iter().filter_map(|span| span.choice.as_ref());
        let tokens: Vec<Token> = rows
            .zip(choices)
            .map(|(row, choice)| sampler::sample(row, choice.sampling, &choice.context))
            .collect();
        Computed { tokens, took: began.elapsed(), is_simulated: false }
    }
}

fn for_decoder<'a>(span: &Span<'a>) -> model::Span<'a> {
    model::Span {
        tokens: span.tokens,
        start: span.start,
        blocks: span.blocks,
        wants_logits: span.choice.is_some(),
    }
}
