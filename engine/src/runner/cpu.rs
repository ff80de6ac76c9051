//! Computes with this crate's CPU kernels.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use kv_transfer::{HostMemory, KvLayout};

use super::{Computed, Facts, Runner, Span, SpanOutput};
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

    fn run(&mut self, spans: &mut [Span<'_>], layout: &KvLayout, memory: &HostMemory) -> Computed {
        let to_compute: Vec<model::Span<'_>> = spans.iter().map(for_decoder).collect();
        let Self { model, compute, .. } = self;
        let _turn = compute.take_turn();
        let began = Instant::now();
        let mut logits = model.decoder.forward(compute, &to_compute, layout, memory);
        let mut rest = logits.as_mut_slice();
        let mut conclude = |span: &mut Span<'_>| {
            let rows = rest.split_off_mut(..span.logits() * self.facts.vocabulary_size);
            conclude(span, rows.expect("as many logits as were asked for"), &self.facts)
        };
        let spans = spans.iter_mut().map(&mut conclude).collect();
        Computed { spans, took: began.elapsed(), is_simulated: false }
    }
}

/// `rows` is `[span.logits(), vocabulary_size]`, and used as scratch once a row was reported on.
fn conclude(span: &mut Span<'_>, rows: &mut [f32], facts: &Facts) -> SpanOutput {
    let drafts = span.choice.as_ref().map_or(0, |choice| choice.drafts);
    let first_choice = span.logits().saturating_sub(drafts + 1);
    let rows: RefCell<Vec<&mut [f32]>> =
        RefCell::new(rows.chunks_exact_mut(facts.vocabulary_size).collect());
    span.conclude(
        |row, token, alternatives| sampler::report(rows.borrow()[row], token, alternatives),
        |sampling, draft, context, allowed| {
            let row = &mut rows.borrow_mut()[first_choice + draft];
            match allowed {
                None => sampler::sample(row, sampling, context, None),
                // A grammar may refuse what it allowed, and ask again.
                Some(_) => sampler::sample(&mut row.to_vec(), sampling, context, allowed),
            }
        },
    )
}

fn for_decoder<'a>(span: &Span<'a>) -> model::Span<'a> {
    let logits = span.logits();
    model::Span { tokens: span.tokens, start: span.start, blocks: span.blocks, logits }
}
