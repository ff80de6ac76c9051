//! A prompt on its way from one engine to another, as a decode worker sees it.

use engine::{Engine, Reserved};
use rand::Rng;
use rand::rngs::StdRng;

use crate::scenario::HandoffPlan;

/// Blocks that are set aside, and what is in them.
pub struct Handoff {
    plan: HandoffPlan,
    reserved: Reserved,
    /// Where the prompt's complete blocks lie in the remote engine.
    announced: Vec<u32>,
    /// Reserved blocks that were filled.
    filled: usize,
}

impl Handoff {
    pub fn new(plan: HandoffPlan, reserved: Reserved) -> Self {
        Self { plan, reserved, announced: Vec::new(), filled: 0 }
    }

    pub fn announce(&mut self, blocks: &[u32]) {
        self.announced.extend(blocks);
    }

    /// Copies some of what is announced and not copied yet, up to where the plan says stop.
    pub fn copy_some(&mut self, remote: &Engine, rng: &mut StdRng) {
        let announced = self.announced.get(self.reserved.cached_blocks..).unwrap_or(&[]);
        let until = rng.random_range(self.filled..=announced.len().max(self.filled));
        let until = until.min(self.plan.fails_after_blocks.unwrap_or(until)).max(self.filled);
        let memory = remote.memory();
        for (index, block) in (self.filled..until).zip(&announced[self.filled..]) {
            // SAFETY: the remote engine is not in a step, and holds announced blocks unchanged.
            let bytes = unsafe { memory.bytes_of(*block, 1) }.unwrap();
            self.reserved.writer.fill(index, &bytes).unwrap();
        }
        self.filled = until;
    }

    pub fn is_complete(&self) -> bool {
        self.filled == self.reserved.writer.len()
    }

    /// Whether the plan has it fail now; `at_end`: everything else is done.
    pub fn fails(&self, at_end: bool) -> bool {
        self.plan.fails_after_blocks.is_some_and(|blocks| self.filled >= blocks || at_end)
    }

    /// Nothing that a failed transfer left may count: leaves numbers that would show.
    pub fn spoil(&mut self) {
        let garbage = vec![0xff; self.reserved.writer.layout().block_bytes()];
        for index in 0..self.reserved.writer.len() {
            self.reserved.writer.fill(index, &garbage).unwrap();
        }
    }
}
