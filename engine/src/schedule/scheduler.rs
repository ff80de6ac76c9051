//! Continuous batching by one idea (as in vLLM v1): in every step, let computed tokens catch up
//! with the tokens there are, within a token budget. That one rule is prefill, chunked prefill,
//! decode, prefix hits and recomputation after preemption.
//!
//! What bounds each sequence's wait, in steps:
//! - A stream has a token in every step, or in turn where there are more streams than the step has
//!   tokens for; and a step lasts no longer for prompts beside it than its `Pace` says.
//! - Prompts have a quarter of every step while any waits that may run, however many streams there
//!   are; how they share it is in `share.rs`.
//! - Blocks go to the best rank: who needs one takes it from the worst rank, never from a better one,
//!   so two sequences cannot take them from each other in turn. Nobody is admitted whose tokens do not
//!   fit beside what is admitted, and nobody passes one that waits for blocks.
//! - After `OLD_STEPS` a sequence has the best rank there is, among its like by arrival. So it is
//!   not passed any more and, once it runs, not preempted; it ends after those that came before it.

use std::collections::VecDeque;

use protocol::{LAST_STEP_TOKENS, LONG_PROMPT_TOKENS, StepShape};

use super::{Pace, Purpose, Sequence, SequenceId};
use crate::kv::BlockPool;

/// A sequence that is not done so many steps after it came ranks before whatever has not been here for
/// as long, whatever their priorities.
const OLD_STEPS: u64 = 1024;

/// Sequences that decode and what they guess are no more rows than this together. A step of few rows
/// waits for weights to come from memory, so that some more cost little; many compute for longer.
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
    pace: Option<Pace>,
    pub(super) waiting: VecDeque<Sequence>,
    pub(super) running: Vec<Sequence>,
    arrivals: u64,
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
            pace: None,
            waiting: VecDeque::new(),
            running: Vec::new(),
            arrivals: 0,
            steps: 0,
            left: 0,
            preempted: false,
            is_blocked: false,
        }
    }

    /// From now on steps with streams in them take no longer for their prompts than that.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Some(pace);
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
        let rows = self.running.iter().filter(|sequence| sequence.planned > 0).count();
        let rows_each = GUESSING_ROWS_MAX.checked_div(rows).unwrap_or(0);
        let count = rows_each.saturating_sub(1).min(self.limits.speculative_tokens);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.planned > 0) {
            sequence.guess(count);
            let planned = sequence.chunk(sequence.planned + self.left);
            if planned > sequence.planned && sequence.grow(sequence.computed + planned, pool) {
                self.left -= planned - sequence.planned;
                sequence.planned = planned;
            }
        }
    }

    /// Takes from this step what prompts would make it too long for.
    fn keep_pace(&mut self) {
        let streams = self.running.iter().filter(|sequence| sequence.planned > 0);
        let mut shape = StepShape::default();
        for sequence in streams {
            shape.sequences += sequence.planned as f32;
            shape.attended += (sequence.planned * sequence.tokens.len()) as f32;
        }
        if let (Some(pace), true) = (self.pace, shape.sequences > 0.0) {
            let prompts = self.running.iter().filter(|sequence| sequence.uncomputed() > 1);
            let context_tokens = prompts.map(|prompt| prompt.computed).max().unwrap_or(0);
            self.left = self.left.min(pace.prompt_tokens(&shape, context_tokens));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SequenceRequest;

    const BLOCK_SIZE: usize = 4;

    fn sequence(id: u64, tokens: usize) -> Sequence {
        let request = SequenceRequest {
            id: SequenceId(id),
            prompt: (0..tokens as u32).map(|token| token + 1000 * id as u32).collect(),
            generated: Vec::new(),
            sampling: Default::default(),
            stopping: Default::default(),
            cache_salt: String::new(),
            grammar: None,
            prompt_logprobs: None,
            priority: 0,
        };
        Sequence::new(request, Purpose::Generate, "numerics", BLOCK_SIZE).unwrap()
    }

    fn scheduler(max_num_seqs: usize, max_num_batched_tokens: usize) -> Scheduler {
        Scheduler::new(Limits { max_num_seqs, max_num_batched_tokens, speculative_tokens: 0 })
    }

    /// Runs one step, in which each sequence that catches up gains a token. Returns (id, count).
    fn step(scheduler: &mut Scheduler, pool: &mut BlockPool) -> Vec<(u64, usize)> {
        let scheduled = scheduler.schedule(0, pool);
        pool.assert_consistent();
        let mut counts = Vec::new();
        for Scheduled { index, count } in scheduled {
            let sequence = &mut scheduler.running_mut()[index];
            counts.push((sequence.id.0, count));
            sequence.advance(count, pool);
            if sequence.uncomputed() == 0 {
                sequence.tokens.push(7);
            }
        }
        counts
    }

    #[test]
    fn long_prompts_are_chunked_within_the_budget_beside_running_sequences() {
        let (mut scheduler, mut pool) = (scheduler(8, 10), BlockPool::new(100));
        scheduler.add(sequence(1, 3));
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 3)]);
        scheduler.add(sequence(2, 25));
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 9)]);
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 9)]);
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 7)]);
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 1)]);
    }

    #[test]
    fn a_long_prompt_that_is_pulled_ends_with_a_short_step() {
        let check = |tokens, purpose, budget, expected: &[usize]| {
            let (mut scheduler, mut pool) = (scheduler(8, budget), BlockPool::new(1000));
            let mut long = sequence(1, tokens);
            long.purpose = purpose;
            scheduler.add(long);
            let steps: Vec<usize> =
                expected.iter().map(|_| step(&mut scheduler, &mut pool)[0].1).collect();
            assert_eq!(steps, expected, "{tokens} tokens");
        };
        check(2000, Purpose::Prefill, 512, &[512, 512, 512, 400, 64]);
        check(1600, Purpose::Prefill, 512, &[512, 512, 512, 64]);
        check(1024, Purpose::Prefill, 4096, &[960, 64]);
        check(1000, Purpose::Prefill, 4096, &[1000]);
        check(2000, Purpose::Generate, 4096, &[2000, 1]);
    }

    #[test]
    fn no_more_sequences_run_than_allowed() {
        let (mut scheduler, mut pool) = (scheduler(2, 100), BlockPool::new(100));
        for id in 1..=3 {
            scheduler.add(sequence(id, 4));
        }
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 4), (2, 4)]);
        scheduler.remove(SequenceId(1)).unwrap().release(&mut pool);
        assert_eq!(step(&mut scheduler, &mut pool), [(2, 1), (3, 4)]);
    }

    #[test]
    fn streams_come_before_prompts_and_reserved_sequences_count() {
        let (mut scheduler, mut pool) = (scheduler(3, 10), BlockPool::new(100));
        scheduler.add(sequence(1, 30));
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 10)]);
        let mut resumed = sequence(2, 4);
        assert!(resumed.grow(4, &mut pool));
        resumed.advance(4, &mut pool);
        resumed.tokens.push(7);
        scheduler.resume(resumed);
        assert_eq!(step(&mut scheduler, &mut pool), [(2, 1), (1, 9)]);
        assert!(scheduler.has_room(0) && !scheduler.has_room(1));
    }

    #[test]
    fn a_seen_prefix_is_not_computed_again() {
        let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(100));
        scheduler.add(sequence(1, 13));
        step(&mut scheduler, &mut pool);
        let mut again = sequence(1, 13);
        again.id = SequenceId(2);
        scheduler.add(again);
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 1)], "12 of 13 were seen");
        assert_eq!(scheduler.running()[1].cached_tokens, Some(12));
    }

    #[test]
    fn a_whole_seen_prompt_still_computes_its_last_block_for_the_logits() {
        let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(100));
        scheduler.add(sequence(1, 8));
        step(&mut scheduler, &mut pool);
        let mut again = sequence(1, 8);
        again.id = SequenceId(2);
        scheduler.add(again);
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 4)]);
    }

    #[test]
    fn the_youngest_is_preempted_and_catches_up_later() {
        let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(4));
        scheduler.add(sequence(1, 8));
        scheduler.add(sequence(2, 7));
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 8), (2, 7)]);
        // Sequence 1 needs a third block, and 2 has the last one.
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1)]);
        assert_eq!(scheduler.waiting().len(), 1);
        scheduler.remove(SequenceId(1)).unwrap().release(&mut pool);
        let again = step(&mut scheduler, &mut pool);
        assert_eq!(again, [(2, 4)], "of 8 tokens, the first block was still cached");
    }
}
