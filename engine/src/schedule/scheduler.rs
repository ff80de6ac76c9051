//! Continuous batching by one idea (as in vLLM v1): in every step, let computed tokens catch up
//! with the tokens there are, within a token budget. That one rule is prefill, chunked prefill,
//! decode, prefix hits and recomputation after preemption.
//!
//! What bounds each sequence's wait, in steps:
//! - A stream has a token in every step, or in turn where there are more streams than the step has
//!   tokens for; and a step lasts no longer for prompts beside it than its `Pace` says.
//! - Prompts have a quarter of every step while any waits that may run, however many streams there
//!   are, or what of it their `Pace` leaves beside streams; how they share it is in `share.rs`.
//! - Blocks go to the best rank: who needs one takes it from the worst rank, never from a better one,
//!   so two sequences cannot take them from each other in turn. Nobody is admitted whose tokens do not
//!   fit beside what is admitted, and nobody else is while the first one waits for blocks.
//! - After `OLD_STEPS` a sequence has the best rank there is, among its like by arrival. So it is
//!   not passed any more and, once it runs, not preempted; it ends after those that came before it.

use std::collections::VecDeque;

use protocol::v1::LatencyModel;
use protocol::{LAST_STEP_TOKENS, LONG_PROMPT_TOKENS, StepShape};

use super::pace::{Pace, paying_share};
use super::{Purpose, Sequence, SequenceId};
use crate::kv::BlockPool;

/// A sequence that is not done so many steps after it came ranks before whatever has not been here for
/// as long, whatever their priorities.
const OLD_STEPS: u64 = 1024;

/// Sequences that decode and what they guess are no more rows than this together: so many fill the
/// tiles of the kernels, and beyond that each costs as much as the other.
const GUESSING_ROWS_MAX: usize = 16;

/// How much runs at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences that compute.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// Tokens that a sequence may guess in a step; 0: it never does.
    pub speculative_tokens: usize,
    /// Microseconds that a step with streams in it takes at most, where its prompts can be cut for that.
    pub step_target_us: Option<f32>,
}

/// `count` tokens of the `running` sequence at `index`, to be computed in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// Index into `Scheduler::running`.
    pub index: usize,
    /// How many tokens.
    pub count: usize,
}

/// See the module's description.
pub struct Scheduler {
    limits: Limits,
    latency: LatencyModel,
    pub(super) waiting: VecDeque<Sequence>,
    pub(super) running: Vec<Sequence>,
    arrivals: u64,
    preemptions: u64,
    pub(super) steps: u64,
    /// Tokens that this step may still compute.
    pub(super) left: usize,
    /// A sequence gave its blocks back in this step: nobody else begins.
    pub(super) preempted: bool,
    /// One that waits found too few blocks in this step: nobody passes it.
    pub(super) is_blocked: bool,
}

impl Scheduler {
    /// No sequences.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            latency: LatencyModel::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            arrivals: 0,
            preemptions: 0,
            steps: 0,
            left: 0,
            preempted: false,
            is_blocked: false,
        }
    }

    /// How long steps take, as far as that is known.
    pub fn learn_latency(&mut self, latency: LatencyModel) {
        self.latency = latency;
    }

    /// A new sequence waits.
    pub fn add(&mut self, mut sequence: Sequence) {
        self.arrive(&mut sequence);
        self.waiting.push_back(sequence);
    }

    /// A sequence whose blocks are filled runs at once.
    pub fn resume(&mut self, mut sequence: Sequence) {
        self.arrive(&mut sequence);
        self.running.push(sequence);
    }

    fn arrive(&mut self, sequence: &mut Sequence) {
        self.arrivals += 1;
        (sequence.rank.arrival, sequence.arrived_at) = (self.arrivals, self.steps);
    }

    /// Sequences not yet begun, or preempted, in no order.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// Sequences that compute.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences that compute; `schedule`'s indices point here.
    pub fn running_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    /// Takes a sequence out, wherever it is.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            return Some(self.running.remove(index));
        }
        let index = self.waiting.iter().position(|sequence| sequence.id == id)?;
        self.waiting.remove(index)
    }

    /// Times that a sequence gave its blocks back.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Whether another sequence may begin, beside `reserved` ones that will run later.
    pub fn has_room(&self, reserved: usize) -> bool {
        self.running.len() + reserved < self.limits.max_num_seqs
    }

    /// Chooses this step's tokens and gives their sequences blocks: streams first, so that no prompt
    /// holds them up, then what they guess, then prompts.
    pub fn schedule(&mut self, reserved: usize, pool: &mut BlockPool) -> Vec<Scheduled> {
        self.begin_step();
        let prompts_share = self.prompts_share(reserved);
        self.left = self.limits.max_num_batched_tokens - prompts_share;
        self.plan_streams(pool);
        self.plan_guesses(pool);
        self.left += prompts_share;
        self.keep_pace();
        self.plan_prompts(reserved, pool);
        // Prompts that find no blocks hold up no stream.
        self.plan_streams(pool);
        let counts = self.running.iter().map(|sequence| sequence.planned).enumerate();
        let planned = counts.filter(|(_, count)| *count > 0);
        planned.map(|(index, count)| Scheduled { index, count }).collect()
    }

    /// Streams to the front, those first that have waited for longest, then prompts.
    fn begin_step(&mut self) {
        self.steps += 1;
        (self.preempted, self.is_blocked) = (false, false);
        let steps = self.steps;
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            sequence.planned = 0;
            if steps - sequence.arrived_at > OLD_STEPS {
                sequence.rank.priority = i32::MIN;
            }
        }
        self.running.sort_by_key(|sequence| {
            let is_prompt = sequence.uncomputed() > 1;
            (is_prompt, if is_prompt { 0 } else { sequence.last_step }, sequence.rank)
        });
    }

    /// Tokens of this step that streams leave to prompts: a quarter, or where that is less than one,
    /// one in every second step.
    fn prompts_share(&self, reserved: usize) -> usize {
        let computes_prompt = self.running.last().is_some_and(|last| last.uncomputed() > 1);
        let budget = self.limits.max_num_batched_tokens;
        match computes_prompt || (!self.waiting.is_empty() && self.has_room(reserved)) {
            true => (budget / 4).max((self.steps % 2) as usize).min(budget),
            false => 0,
        }
    }

    fn plan_streams(&mut self, pool: &mut BlockPool) {
        let mut index = 0;
        while self.left > 0 && self.running.get(index).is_some_and(|next| next.uncomputed() <= 1) {
            // Where it went itself, the next one has its place.
            index = self.plan(index, 1, pool).map_or(index, |index| index + 1);
        }
    }

    /// Adds to this step what streams expect to come next, as far as there is room.
    fn plan_guesses(&mut self, pool: &mut BlockPool) {
        let streams = self.planned_streams();
        let rows_each = GUESSING_ROWS_MAX / (streams.sequences as usize).max(1);
        let count = rows_each.saturating_sub(1).min(self.limits.speculative_tokens);
        let share = paying_share(&self.latency, &streams);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.planned > 0) {
            sequence.guess(count, share);
            let mut planned = sequence.chunk(sequence.planned + self.left);
            if !sequence.grow(sequence.computed + planned, pool) {
                planned = planned.min(sequence.room());
            }
            self.left -= planned - sequence.planned;
            sequence.planned = planned;
        }
    }

    /// Takes from this step what prompts would make it too long for.
    fn keep_pace(&mut self) {
        let streams = self.planned_streams();
        if let (Some(step_target_us), true) = (self.limits.step_target_us, streams.sequences > 0.0)
        {
            let prompts = self.running.iter().filter(|sequence| sequence.uncomputed() > 1);
            let context_tokens = prompts.map(|prompt| prompt.computed).max().unwrap_or(0);
            let pace = Pace { step_target_us, latency: self.latency };
            self.left = self.left.min(pace.prompt_tokens(&streams, context_tokens));
        }
    }

    /// What this step computes so far.
    fn planned_streams(&self) -> StepShape {
        let mut shape = StepShape::default();
        for sequence in self.running.iter().filter(|sequence| sequence.planned > 0) {
            shape.sequences += sequence.planned as f32;
            shape.attended += (sequence.planned * sequence.tokens.len()) as f32;
        }
        shape
    }

    /// Has at most `budget` tokens of a running sequence computed in this step, where needed with
    /// blocks of what ranks below it. Gives its index, which may have become another one; none: it had
    /// to give up its own blocks.
    pub(super) fn plan(
        &mut self,
        mut index: usize,
        budget: usize,
        pool: &mut BlockPool,
    ) -> Option<usize> {
        loop {
            let sequence = &mut self.running[index];
            let count = chunk(sequence, budget).max(sequence.planned);
            if sequence.grow(sequence.computed + count, pool) {
                self.left -= count - sequence.planned;
                (sequence.planned, sequence.last_step) = (count, self.steps);
                return Some(index);
            }
            if count > sequence.uncomputed() {
                sequence.forget_drafts();
            } else if !self.give_up_drafts(pool) {
                let gone = self.preempt_worst(pool);
                if gone == index {
                    return None;
                }
                index -= usize::from(gone < index);
            }
        }
    }

    /// What may never come makes nobody else go or wait. Whether there was any.
    pub(super) fn give_up_drafts(&mut self, pool: &mut BlockPool) -> bool {
        let drafting = |sequence: &&mut Sequence| sequence.planned > sequence.uncomputed();
        let mut any = false;
        for sequence in self.running.iter_mut().filter(drafting) {
            self.left += sequence.planned - sequence.uncomputed();
            sequence.planned = sequence.uncomputed();
            sequence.forget_drafts();
            sequence.trim(pool);
            any = true;
        }
        any
    }

    /// The running sequence of the worst rank gives its blocks back and computes again later. One
    /// that holds its blocks for a reader has them all and is passed over. Gives the index it had.
    fn preempt_worst(&mut self, pool: &mut BlockPool) -> usize {
        let sequences = self.running.iter().enumerate();
        let others = sequences.filter(|(_, sequence)| sequence.purpose != Purpose::Prefill);
        let worst = others.max_by_key(|(_, sequence)| sequence.rank);
        let (index, _) = worst.expect("who needs a block does not have all of them");
        let mut sequence = self.running.remove(index);
        self.left += std::mem::take(&mut sequence.planned);
        sequence.release(pool);
        self.waiting.push_back(sequence);
        self.preempted = true;
        self.preemptions += 1;
        index
    }
}

/// Tokens of a sequence to compute in this step. A long prompt's last tokens have a step of their own
/// where a reader pulls its blocks: all others are on their way by then, so that little is left to
/// move after the first token.
pub(super) fn chunk(sequence: &Sequence, budget: usize) -> usize {
    let uncomputed = sequence.uncomputed();
    let is_pulled = sequence.purpose == Purpose::Prefill && uncomputed <= budget;
    if is_pulled && sequence.tokens.len() >= LONG_PROMPT_TOKENS && uncomputed > LAST_STEP_TOKENS {
        return uncomputed - LAST_STEP_TOKENS;
    }
    sequence.chunk(budget)
}
