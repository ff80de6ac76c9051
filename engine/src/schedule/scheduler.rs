//! Continuous batching by one idea (as in vLLM v1): in every step, let computed tokens catch up
//! with the tokens there are, within a token budget. That one rule is prefill, chunked prefill,
//! decode, prefix hits and recomputation after preemption.

use std::collections::VecDeque;

use protocol::{LAST_STEP_TOKENS, LONG_PROMPT_TOKENS};

use super::{Purpose, Sequence, SequenceId};
use crate::kv::BlockPool;

/// How much runs at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences that compute.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
}

/// `count` tokens of the `running` sequence at `index`, to be computed in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// Index into `Scheduler::running`.
    pub index: usize,
    /// How many tokens.
    pub count: usize,
}

/// Sequences in order of arrival.
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
}

impl Scheduler {
    /// No sequences.
    pub fn new(limits: Limits) -> Self {
        Self { limits, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// A new sequence waits at the end.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// A sequence whose blocks are filled runs at once.
    pub fn resume(&mut self, sequence: Sequence) {
        self.running.push(sequence);
    }

    /// Sequences not yet begun, or preempted.
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

    /// Chooses this step's tokens and gives their sequences blocks. Sequences that decode come
    /// first, so that no prompt holds up a stream, then those that compute their prompts, then
    /// waiting ones; each in order. The last one running makes room where blocks run out.
    pub fn schedule(&mut self, reserved: usize, pool: &mut BlockPool) -> Vec<Scheduled> {
        let mut budget = self.limits.max_num_batched_tokens;
        self.running.sort_by_key(|sequence| sequence.uncomputed() > 1);
        let (mut scheduled, preempted) = self.schedule_running(&mut budget, pool);
        if !preempted {
            self.admit_waiting(reserved, &mut scheduled, &mut budget, pool);
        }
        scheduled
    }

    fn schedule_running(
        &mut self,
        budget: &mut usize,
        pool: &mut BlockPool,
    ) -> (Vec<Scheduled>, bool) {
        let mut scheduled = Vec::new();
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            let sequence = &mut self.running[index];
            let count = chunk(sequence, *budget);
            if sequence.grow(sequence.computed + count, pool) {
                scheduled.push(Scheduled { index, count });
                *budget -= count;
                index += 1;
            } else if !sequence.drafts.is_empty() {
                // What may never come makes nobody else go.
                sequence.drafts.clear();
            } else {
                self.preempt_last(pool);
                preempted = true;
            }
        }
        (scheduled, preempted)
    }

    /// The youngest running sequence gives its blocks back and computes again later. One that
    /// holds its blocks for a reader has them all and is passed over.
    fn preempt_last(&mut self, pool: &mut BlockPool) {
        let last = self.running.iter().rposition(|sequence| sequence.purpose != Purpose::Prefill);
        if let Some(index) = last {
            let mut sequence = self.running.remove(index);
            sequence.release(pool);
            self.waiting.push_front(sequence);
        }
    }

    fn admit_waiting(
        &mut self,
        reserved: usize,
        scheduled: &mut Vec<Scheduled>,
        budget: &mut usize,
        pool: &mut BlockPool,
    ) {
        while *budget > 0 && self.has_room(reserved) {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.take_cached_prefix(pool);
            let uncomputed = sequence.uncomputed();
            let count = chunk(&sequence, *budget);
            // What a reader will pull is never half there: all blocks or none.
            let tokens = match sequence.purpose {
                Purpose::Prefill => sequence.tokens.len(),
                Purpose::Generate => sequence.computed + count,
            };
            if !sequence.grow(tokens, pool) {
                sequence.drafts.clear();
                sequence.release(pool);
                self.waiting.push_front(sequence);
                break;
            }
            let cached = sequence.tokens.len() - uncomputed;
            sequence.cached_tokens.get_or_insert(cached);
            scheduled.push(Scheduled { index: self.running.len(), count });
            *budget -= count;
            self.running.push(sequence);
        }
    }
}

/// Tokens of a sequence to compute in this step. A long prompt's last tokens have a step of their own
/// where a reader pulls its blocks: all others are on their way by then, so that little is left to
/// move after the first token.
fn chunk(sequence: &Sequence, budget: usize) -> usize {
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
        };
        Sequence::new(request, Purpose::Generate, "numerics", BLOCK_SIZE).unwrap()
    }

    fn scheduler(max_num_seqs: usize, max_num_batched_tokens: usize) -> Scheduler {
        Scheduler::new(Limits { max_num_seqs, max_num_batched_tokens })
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
