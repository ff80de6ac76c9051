//! What the router knows of each worker: its registration, its last load report, and what was
//! dispatched to it since.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::v1;

/// A worker that missed three reports is passed over, unless all have.
const REPORT_AGE_MAX: Duration = Duration::from_millis(350);

/// A report contains what was dispatched at least this long before it came.
const REPORT_DELAY: Duration = Duration::from_millis(10);

/// Dispatches remembered per worker; at the limit the oldest are taken as reported.
const DISPATCHES_MAX: usize = 1024;

/// One worker's life.
pub struct WorkerEntry {
    /// Who it is and what it serves.
    pub registration: v1::WorkerRegistration,
    /// What it last said.
    pub load: v1::LoadReport,
    heard: Instant,
    dispatched: VecDeque<Dispatch>,
}

struct Dispatch {
    at: Instant,
    /// When its prompt is predicted to be computed.
    computed: Instant,
    prompt_tokens: u64,
}

impl WorkerEntry {
    /// A worker that just registered and counts as idle until it reports.
    pub fn new(registration: v1::WorkerRegistration, now: Instant) -> Self {
        let load = v1::LoadReport { free_blocks: registration.kv_blocks, ..Default::default() };
        Self { registration, load, heard: now, dispatched: VecDeque::new() }
    }

    /// Takes a report in; it supersedes what was dispatched before it was made.
    pub fn report(&mut self, load: v1::LoadReport, now: Instant) {
        self.load = load;
        self.heard = now;
        self.dispatched.retain(|dispatch| now < dispatch.at + REPORT_DELAY);
    }

    /// Counts a request sent here, in prompt tokens it will have computed `ttft` from now.
    pub fn dispatch(&mut self, prompt_tokens: u64, ttft: Duration, now: Instant) {
        if self.dispatched.len() >= DISPATCHES_MAX {
            self.dispatched.pop_front();
        }
        self.dispatched.push_back(Dispatch { at: now, computed: now + ttft, prompt_tokens });
    }

    /// Whether it was heard of lately.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) <= REPORT_AGE_MAX
    }

    /// Prompt tokens that will be computed before a new one's.
    pub fn queued_tokens(&self, now: Instant) -> u64 {
        let waiting = self.dispatched.iter().filter(|dispatch| now < dispatch.computed);
        let dispatched: u64 = waiting.map(|dispatch| dispatch.prompt_tokens).sum();
        self.load.waiting_prompt_tokens.saturating_add(dispatched)
    }

    /// Streams that share its steps.
    pub fn streams(&self) -> usize {
        self.load.running_sequences as usize
            + self.load.waiting_sequences as usize
            + self.dispatched.len()
    }

    /// Blocks that could be given to a new sequence.
    pub fn available_blocks(&self) -> usize {
        self.load.free_blocks as usize + self.load.cached_blocks as usize
    }
}
