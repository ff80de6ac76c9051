//! The boundary between the engine, which decides what to compute, and what computes it.

#[cfg(feature = "candle")]
mod candle;
mod cpu;
mod cuda;
mod logits;
mod mock;
mod mock_vocabulary;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use grammar::{GrammarError, GrammarState, TokenSet};
use kv_transfer::{HostMemory, KvLayout, KvMemory};
use protocol::v1::{Sampling, Token};

use crate::model::ModelConfig;
use crate::sampler;
pub use crate::sampler::Context;
#[cfg(feature = "candle")]
pub use candle::CandleRunner;
pub use cpu::CpuRunner;
pub use cuda::CudaRunner;
pub use mock::{MockRunner, MockTimes};
pub use mock_vocabulary::MockVocabulary;

/// Computes batches: writes the KV of tokens and chooses the tokens that follow.
pub trait Runner: Send {
    /// What the engine has to know of the model.
    fn facts(&self) -> &Facts;

    /// What a KV block of `block_size` tokens looks like.
    fn kv_layout(&self, block_size: usize) -> KvLayout;

    /// Tells, also between steps, when what it computes with is lost; none where that cannot be.
    fn watch(&self) -> Option<Watch> {
        None
    }

    /// Bytes that a KV pool may have on the device that it computes on, where so many workers with
    /// steps of these sizes are still to be started there; none where that is the host. Errors: the
    /// device does not say what is free.
    fn pool_bytes(&self, _sizes: &Sizes, _workers: usize) -> Result<Option<usize>, RunnerError> {
        Ok(None)
    }

    /// Allocates what a worker computes in, once: the KV pool, whose blocks have this layout, and
    /// whatever steps need beside it. Errors: there is not enough memory.
    fn allocate(&mut self, layout: &KvLayout, sizes: &Sizes) -> Result<KvMemory, RunnerError> {
        let (blocks, block_bytes) = (sizes.kv_blocks, layout.block_bytes());
        let memory = match sizes.shares_memory {
            false => HostMemory::new(blocks, block_bytes),
            true => HostMemory::shared(blocks, block_bytes),
        };
        Ok(Arc::new(memory.map_err(RunnerError::HostMemory)?).into())
    }

    /// Computes all spans. Their KV lies in `memory`, which `allocate` gave. The result for one span
    /// does not depend on the others. Errors: the device failed, and will not compute any more.
    fn run(
        &mut self,
        spans: &mut [Span<'_>],
        layout: &KvLayout,
        memory: &KvMemory,
    ) -> Result<Computed, RunnerError>;
}

/// Says why a runner will not compute any more, once that is known.
pub type Watch = Arc<dyn Fn() -> Option<RunnerError> + Send + Sync>;

/// How much a runner has to have room for.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Tokens per KV block.
    pub block_size: usize,
    /// Blocks of the KV pool.
    pub kv_blocks: usize,
    /// Whether the pool's memory can be given to another process of this host.
    pub shares_memory: bool,
    /// Tokens of one step.
    pub step_tokens: usize,
    /// Spans of one step.
    pub spans: usize,
    /// Tokens of one sequence.
    pub context_tokens: usize,
}

/// Why a runner cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The system refuses memory.
    #[error("the system refuses memory for the KV pool: {0}")]
    HostMemory(#[source] io::Error),
    /// A device failed, or has too little memory.
    #[error("{device}: {problem}")]
    Device {
        /// Which.
        device: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// The pool of a runner that computes in the host's memory.
fn on_host(memory: &KvMemory) -> &HostMemory {
    match memory {
        KvMemory::Host(memory) => memory,
        KvMemory::Cuda(_) => unreachable!("this runner allocated its pool in the host's memory"),
    }
}

/// What the engine has to know of a model.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Tokens and KV are equal within one id.
    pub numerics_id: String,
    /// Equal where answers differ by nothing but the kernels' rounding.
    pub weights_id: String,
    /// Token ids are below this.
    pub vocabulary_size: usize,
    /// Longest context the model was made for.
    pub context_tokens: usize,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl Facts {
    fn of(config: &ModelConfig, numerics_id: &str, weights_id: &str) -> Self {
        Self {
            numerics_id: numerics_id.to_string(),
            weights_id: weights_id.to_string(),
            vocabulary_size: config.vocabulary_size,
            context_tokens: config.context_tokens,
            eos_token_ids: config.eos_token_ids.clone(),
        }
    }
}

/// Consecutive tokens of one sequence to compute in this step.
pub struct Span<'a> {
    /// The tokens; at the end those that are only expected to come.
    pub tokens: &'a [u32],
    /// Position of the first of them.
    pub start: usize,
    /// The sequence's blocks, with room for all of them.
    pub blocks: &'a [u32],
    /// How the token after them is chosen, where one is wanted.
    pub choice: Option<Choice<'a>>,
    /// What is to be said of the prompt's own tokens, where that is wanted.
    pub prompt_report: Option<PromptReport<'a>>,
}

/// How a token is chosen.
pub struct Choice<'a> {
    /// What the request asks for.
    pub sampling: &'a Sampling,
    /// What came before, drafts at its end.
    pub context: Context<'a>,
    /// How many of the span's last tokens are drafts, each to be verified.
    pub drafts: usize,
    /// What must be matched.
    pub grammar: Option<&'a mut GrammarState>,
}

impl Choice<'_> {
    fn verify(
        &mut self,
        mut choose: impl FnMut(&Sampling, usize, &Context<'_>, Option<&TokenSet>) -> Token,
    ) -> Result<Vec<Token>, GrammarError> {
        let Self { sampling, context, drafts, grammar } = self;
        sampler::verify(context, *drafts, grammar.as_deref_mut(), |draft, context, allowed| {
            choose(sampling, draft, context, allowed)
        })
    }
}

/// Logprobs of tokens that are there already.
pub struct PromptReport<'a> {
    /// The tokens after the span's, each one's predecessor being in it.
    pub next_tokens: &'a [u32],
    /// So many alternatives beside each.
    pub alternatives: u32,
}

/// What a batch gave.
pub struct Computed {
    /// One per span, in order.
    pub spans: Vec<SpanOutput>,
    /// How long it took, without the wait for a turn.
    pub took: Duration,
    /// `took` is made up: it has yet to pass before the tokens may be seen.
    pub is_simulated: bool,
}

/// What a span gave.
#[derive(Default)]
pub struct SpanOutput {
    /// The token chosen, after those drafts that came true.
    pub tokens: Vec<Token>,
    /// The report on the prompt.
    pub prompt: Vec<Token>,
    /// Nothing can be chosen.
    pub failure: Option<GrammarError>,
}

impl Span<'_> {
    /// Makes of what was computed what the engine wants to know. `report` says how likely a token of
    /// the prompt was after the span's so many-th token; `choose` is as for `sampler::verify`.
    fn conclude(
        &mut self,
        report: impl Fn(usize, u32, u32) -> Token,
        choose: impl FnMut(&Sampling, usize, &Context<'_>, Option<&TokenSet>) -> Token,
    ) -> SpanOutput {
        let mut output = SpanOutput::default();
        if let Some(PromptReport { next_tokens, alternatives }) = &self.prompt_report {
            let tokens = next_tokens.iter().enumerate();
            output.prompt =
                tokens.map(|(index, token)| report(index, *token, *alternatives)).collect();
        }
        if let Some(choice) = &mut self.choice {
            match choice.verify(choose) {
                Ok(tokens) => output.tokens = tokens,
                Err(error) => output.failure = Some(error),
            }
        }
        output
    }

    /// After how many of its last tokens logits are needed.
    pub fn logits(&self) -> usize {
        match (&self.prompt_report, &self.choice) {
            (Some(_), _) => self.tokens.len(),
            (None, Some(choice)) => choice.drafts + 1,
            (None, None) => 0,
        }
    }
}
