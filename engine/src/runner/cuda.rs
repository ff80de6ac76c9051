//! Computes on an NVIDIA GPU, by our own kernels.

use std::sync::Arc;
use std::time::Instant;

use cuda_kernels::RowSampling;
use grammar::TokenSet;
use kv_transfer::cuda::CudaMemory;
use kv_transfer::{KvLayout, KvMemory};
use protocol::v1::{Sampling, Token};

use super::{
    Choice, Computed, Context, Facts, Runner, RunnerError, Sizes, Span, SpanOutput, Watch,
};
use crate::cuda::{Computing, CudaModel, Row};
use crate::sampler;

/// Of what is free. The driver, cuBLAS and captured steps take some too.
const POOL_SHARE: f64 = 0.9;

/// A model on a GPU, and what one worker computes in.
pub struct CudaRunner {
    // Before the model, on whose GPU it is.
    computing: Option<Computing>,
    model: Arc<CudaModel>,
    facts: Facts,
}

impl CudaRunner {
    /// Runners of one process share a model.
    pub fn new(model: Arc<CudaModel>) -> Self {
        let facts = Facts::of(&model.config, &model.numerics_id, &model.weights_id);
        Self { computing: None, model, facts }
    }
}

fn failed(model: &CudaModel, problem: impl ToString) -> RunnerError {
    let device = format!("CUDA device {}", model.device().ordinal());
    RunnerError::Device { device, problem: problem.to_string() }
}

impl Runner for CudaRunner {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn kv_layout(&self, block_size: usize) -> KvLayout {
        self.model.decoder.kv_layout(&self.facts.numerics_id, block_size)
    }

    fn watch(&self) -> Option<Watch> {
        let model = self.model.clone();
        Some(Arc::new(move || {
            let gone = model.decoder.check_weights().err()?;
            Some(failed(&model, gone))
        }))
    }

    fn pool_bytes(&self, sizes: &Sizes, workers: usize) -> Result<Option<usize>, RunnerError> {
        let Sizes { step_tokens, spans, context_tokens, .. } = *sizes;
        let free = self.model.device().free_bytes();
        let free = free.map_err(|error| failed(&self.model, error))?;
        let steps = self.model.step_bytes(sizes.block_size, step_tokens, spans, context_tokens);
        let free = (free as f64 * POOL_SHARE) as usize;
        Ok(Some(free.saturating_sub(workers * steps) / workers.max(1)))
    }

    fn allocate(&mut self, layout: &KvLayout, sizes: &Sizes) -> Result<KvMemory, RunnerError> {
        let Sizes { step_tokens, spans, context_tokens, kv_blocks, .. } = *sizes;
        let computing = self.model.computing(layout.block_size, step_tokens, spans, context_tokens);
        let computing = computing.map_err(|error| {
            failed(
                &self.model,
                format!(
                    "{error}: there is no room for steps of {step_tokens} tokens of {spans} sequences; \
                 use a smaller --max-num-batched-tokens or --max-num-seqs"
                ),
            )
        })?;
        let memory = CudaMemory::new(self.model.device(), kv_blocks, layout.block_bytes());
        let memory = memory.map_err(|error| failed(&self.model, error))?;
        let memory = memory.copied_by(computing.copies());
        self.computing = Some(computing);
        Ok(Arc::new(memory).into())
    }

    fn run(
        &mut self,
        spans: &mut [Span<'_>],
        layout: &KvLayout,
        memory: &KvMemory,
    ) -> Result<Computed, RunnerError> {
        let Self { computing: Some(computing), model, .. } = self else {
            unreachable!("the engine allocates before it computes");
        };
        let KvMemory::Cuda(memory) = memory else {
            unreachable!("this runner allocated its pool on its GPU");
        };
        let to_compute: Vec<_> = spans.iter().map(Span::for_decoder).collect();
        let samplings: Vec<_> = spans.iter().flat_map(on_device).collect();
        let turn = model.take_turn();
        let began = Instant::now();
        let rows = computing.run(&model.decoder, &to_compute, layout, memory, &samplings);
        let mut rows = rows.map_err(|error| failed(model, error))?.into_iter();
        // What the host chooses needs no GPU.
        drop(turn);
        let conclude = |span: &mut Span<'_>| conclude(span, rows.by_ref().take(span.logits()));
        let took = began.elapsed();
        let spans = spans.iter_mut().map(conclude).collect();
        Ok(Computed { spans, took, is_simulated: false })
    }
}

/// Of each row whose logits a span wants: how its token is chosen on the GPU, or nothing where that is
/// the host's.
fn on_device(span: &Span<'_>) -> Vec<Option<RowSampling>> {
    match (&span.prompt_report, &span.choice) {
        (None, Some(choice)) => (0..=choice.drafts).map(|draft| plain(choice, draft)).collect(),
        _ => vec![None; span.logits()],
    }
}

/// How a token is chosen where nothing but its logits matters.
fn plain(choice: &Choice<'_>, draft: usize) -> Option<RowSampling> {
    let Choice { sampling, context, drafts, grammar } = choice;
    let position = context.tokens.len() - drafts + draft - context.prompt_tokens;
    let is_free = grammar.is_none() && position >= context.min_tokens;
    if !is_free || !sampler::is_plain(sampling) {
        return None;
    }
    Some(RowSampling {
        random: sampler::uniform(sampling.seed, sampling.choice, position as u64),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        top_k: sampling.top_k,
    })
}

fn conclude(span: &mut Span<'_>, rows: impl Iterator<Item = Row>) -> SpanOutput {
    let rows: Vec<Row> = rows.collect();
    let drafts = span.choice.as_ref().map_or(0, |choice| choice.drafts);
    let first_choice = span.logits().saturating_sub(drafts + 1);
    span.conclude(
        |row, token, alternatives| match &rows[row] {
            Row::Logits(logits) => sampler::report(logits, token, alternatives),
            Row::Token(_) => unreachable!("a span with a report wants logits"),
        },
        |sampling, draft, context, allowed| {
            choose(&rows[first_choice + draft], sampling, context, allowed)
        },
    )
}

fn choose(
    row: &Row,
    sampling: &Sampling,
    context: &Context<'_>,
    allowed: Option<&TokenSet>,
) -> Token {
    match row {
        Row::Token(id) => Token { id: *id, ..Default::default() },
        Row::Logits(logits) => sampler::sample(&mut logits.clone(), sampling, context, allowed),
    }
}
