//! The boundary between the engine, which decides what to compute, and what computes it.

mod cpu;
mod mock;
mod mock_vocabulary;

use std::time::Duration;

use kv_transfer::{HostMemory, KvLayout};
use protocol::v1::{Sampling, Token};

pub use crate::sampler::Context;
pub use cpu::CpuRunner;
pub use mock::{MockRunner, MockTimes};
pub use mock_vocabulary::MockVocabulary;

/// Computes batches: writes the KV of tokens and chooses the tokens that follow.
pub trait Runner: Send {
    /// What the engine has to know of the model.
    fn facts(&self) -> &Facts;

    /// What a KV block of `block_size` tokens looks like.
    fn kv_layout(&self, block_size: usize) -> KvLayout;

    /// Computes all spans. Their KV lies in `memory`, whose blocks have this layout. The result
    /// for one span does not depend on the others.
    fn run(&mut self, spans: &[Span<'_>], layout: &KvLayout, memory: &HostMemory) -> Computed;
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

/// Consecutive tokens of one sequence to compute in this step.
pub struct Span<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Position of the first of them.
    pub start: usize,
    /// The sequence's blocks, with room for all of them.
    pub blocks: &'a [u32],
    /// How the token after them is chosen, where one is wanted.
    pub choice: Option<Choice<'a>>,
}

/// How a token is chosen.
pub struct Choice<'a> {
    /// What the request asks for.
    pub sampling: &'a Sampling,
    /// What came before, and what must not come now.
    pub context: Context<'a>,
}

/// What a batch gave.
pub struct Computed {
    /// One token per span that asked, in order.
    pub tokens: Vec<Token>,
    /// How long it took, without the wait for a turn.
    pub took: Duration,
    /// `took` is made up: it has yet to pass before the tokens may be seen.
    pub is_simulated: bool,
}
