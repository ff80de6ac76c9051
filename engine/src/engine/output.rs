//! What an engine tells of its steps, and of how busy it is.

use std::time::Duration;

use grammar::GrammarError;
use protocol::StepShape;
use protocol::v1::{FinishReason, Token};

use crate::kv::BlockCounts;
use crate::schedule::{Guesses, Sequence, SequenceId};

/// What one step did.
#[derive(Default)]
pub struct StepOutput {
    /// News of each sequence that has any.
    pub sequences: Vec<SequenceOutput>,
    /// Prompt tokens computed (also again, after preemption).
    pub prefill_tokens: usize,
    /// Sequences that were decoding; each token that one expected to come next counts as another.
    pub decode_sequences: usize,
    /// Tokens that sequences guessed, and how many of these came true.
    pub guesses: Guesses,
    /// For each computed token of a prompt, the tokens up to and with it, summed up.
    pub prefill_attended: usize,
    /// The same, over sequences that were decoding.
    pub decode_attended: usize,
    /// How long the arithmetic took, without the wait for a turn.
    pub took: Duration,
    /// `took` is made up: it has yet to pass before the news may go out.
    pub is_simulated: bool,
}

impl StepOutput {
    /// Whether there was nothing to compute.
    pub fn is_idle(&self) -> bool {
        self.prefill_tokens + self.decode_sequences == 0
    }

    /// What it computed, as far as its duration depends on it.
    pub fn shape(&self) -> StepShape {
        StepShape {
            prefill_tokens: self.prefill_tokens as f32,
            prefill_attended: self.prefill_attended as f32,
            sequences: self.decode_sequences as f32,
            attended: self.decode_attended as f32,
        }
    }

    /// Counts `count` tokens of a sequence, before it advances by them. Computing again after
    /// preemption is prefill too.
    pub(super) fn count(&mut self, sequence: &Sequence, count: usize) {
        let attended = attended(sequence.computed, count);
        if sequence.in_prefill() || sequence.uncomputed() > 1 {
            self.prefill_tokens += count;
            self.prefill_attended += attended;
        } else {
            self.decode_sequences += count;
            self.decode_attended += attended;
        }
    }
}

/// News of one sequence.
#[derive(Debug)]
pub struct SequenceOutput {
    /// Which one.
    pub id: SequenceId,
    /// The tokens it gained.
    pub tokens: Vec<Token>,
    /// With its first token: prompt tokens that the prefix cache had.
    pub cached_tokens: Option<usize>,
    /// It ended with this token. A prefill's blocks are held all the same until `release`.
    pub finish: Option<FinishReason>,
    /// Prefill only: blocks that became complete, in prompt order.
    pub ready_blocks: Vec<u32>,
    /// With its first token, where it was asked for: the prompt's tokens from the second on.
    pub prompt_report: Vec<Token>,
    /// It ended without an answer: its grammar cannot be followed.
    pub failure: Option<GrammarError>,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that compute, or will once their blocks are filled.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Prompt tokens that wait to be computed.
    pub waiting_prompt_tokens: usize,
    /// Tokens present in all sequences.
    pub sequence_tokens: usize,
    /// Times since the start that a sequence gave its blocks back to one of a better rank.
    pub preemptions: u64,
    /// The pool.
    pub blocks: BlockCounts,
}

impl SequenceOutput {
    /// No news yet.
    pub(super) fn nothing(id: SequenceId) -> Self {
        Self {
            id,
            tokens: Vec::new(),
            cached_tokens: None,
            finish: None,
            ready_blocks: Vec::new(),
            prompt_report: Vec::new(),
            failure: None,
        }
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.finish.is_some() || self.failure.is_some()
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.ready_blocks.is_empty() && self.failure.is_none()
    }
}

/// For each of `count` tokens after `before` others, the tokens up to and with it, summed up.
pub(super) fn attended(before: usize, count: usize) -> usize {
    count * before + count * (count + 1) / 2
}
