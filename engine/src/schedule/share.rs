//! How prompts share what streams leave of a step.
//!
//! The first one (by rank) is computed before others, but where the step is too short for all that is
//! left of it, prompts with less left than that have half of the step, the shortest first. So
//! the first one takes twice its time at most, each prompt becomes the first one when those that rank
//! before it are computed, and a short one waits for shorter ones, not for long ones.

use super::scheduler::{Scheduler, chunk};
use super::{Purpose, Rank, Sequence, SequenceId};
use crate::kv::BlockPool;

/// A prompt that this step may compute.
#[derive(Clone, Copy)]
struct Prompt {
    id: SequenceId,
    place: Place,
    rank: Rank,
    /// Tokens to compute, as far as is known: what the cache has may be among them.
    tokens: usize,
}

#[derive(Clone, Copy)]
enum Place {
    /// At this index.
    Running(usize),
    Waiting(usize),
}

impl Scheduler {
    /// Gives this step's other tokens to prompts, those that wait among them.
    pub(super) fn plan_prompts(&mut self, reserved: usize, pool: &mut BlockPool) {
        while self.left > 0 {
            let Some(first) = self.prompts(reserved).min_by_key(|prompt| prompt.rank) else {
                return;
            };
            if first.tokens <= self.left {
                self.plan_prompt(first, self.left, pool);
                continue;
            }
            if self.plan_prompt(first, self.left.div_ceil(2), pool) {
                self.plan_shorter(first.tokens, reserved, pool);
                self.extend(first.id, pool);
                return;
            }
        }
    }

    fn plan_shorter(&mut self, tokens: usize, reserved: usize, pool: &mut BlockPool) {
        while self.left > 0 {
            let shorter = self.prompts(reserved).filter(|prompt| prompt.tokens < tokens);
            let Some(next) = shorter.min_by_key(|prompt| (prompt.tokens, prompt.rank)) else {
                return;
            };
            self.plan_prompt(next, self.left, pool);
        }
    }

    /// A prompt in this step has what is left of it too.
    fn extend(&mut self, id: SequenceId, pool: &mut BlockPool) {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let budget = self.running[index].planned + self.left;
            self.plan(index, budget, pool);
        }
    }

    /// Those not in this step that may be.
    fn prompts(&self, reserved: usize) -> impl Iterator<Item = Prompt> {
        let others =
            |(_, sequence): &(usize, &Sequence)| sequence.planned == 0 && sequence.uncomputed() > 1;
        let running = self.running.iter().enumerate().filter(others);
        let running = running.map(|(index, sequence)| Prompt::new(Place::Running(index), sequence));
        let begins = !self.preempted && !self.is_blocked && self.has_room(reserved);
        let waiting = self.waiting.iter().enumerate().filter(move |_| begins);
        let waiting = waiting.map(|(index, sequence)| Prompt::new(Place::Waiting(index), sequence));
        running.chain(waiting)
    }

    /// Whether it is in this step now. If not, it is no longer among `prompts`.
    fn plan_prompt(&mut self, prompt: Prompt, budget: usize, pool: &mut BlockPool) -> bool {
        match prompt.place {
            Place::Running(index) => self.plan(index, budget, pool).is_some(),
            Place::Waiting(index) => self.admit(index, budget, pool),
        }
    }

    /// Begins with a sequence that waits. Where there are too few blocks for it, nobody passes it.
    fn admit(&mut self, index: usize, budget: usize, pool: &mut BlockPool) -> bool {
        let Some(mut sequence) = self.waiting.remove(index) else { return false };
        sequence.take_cached_prefix(pool);
        let cached = sequence.computed;
        while !self.fits(&sequence, pool) || !grow(&mut sequence, budget, pool) {
            if sequence.drafts.is_empty() && !self.give_up_drafts(pool) {
                sequence.release(pool);
                self.waiting.insert(index, sequence);
                self.is_blocked = true;
                return false;
            }
            sequence.forget_drafts();
        }
        sequence.cached_tokens.get_or_insert(cached);
        sequence.planned = chunk(&sequence, budget);
        sequence.last_step = self.steps;
        self.left -= sequence.planned;
        self.running.push(sequence);
        true
    }

    /// Whether all of its tokens have room beside all of those that run. Otherwise one of them would
    /// have to go before it is done.
    fn fits(&self, sequence: &Sequence, pool: &BlockPool) -> bool {
        let promised: usize = self.running.iter().map(Sequence::missing_blocks).sum();
        promised + sequence.missing_blocks() <= pool.available()
    }
}

/// Takes the blocks of its first step. What a reader will pull is never half there: all blocks or none.
fn grow(sequence: &mut Sequence, budget: usize, pool: &mut BlockPool) -> bool {
    let tokens = match sequence.purpose {
        Purpose::Prefill => sequence.tokens.len(),
        Purpose::Generate => sequence.computed + chunk(sequence, budget),
    };
    sequence.grow(tokens, pool)
}

impl Prompt {
    fn new(place: Place, sequence: &Sequence) -> Self {
        Self { id: sequence.id, place, rank: sequence.rank, tokens: sequence.uncomputed() }
    }
}
