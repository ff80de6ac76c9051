//! What the router knows of each worker: its registration, its last load report, and what was
//! dispatched to it since.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::v1::{self, LatencyModel};

/// A worker that missed three reports is passed over, unless all have.
const REPORT_AGE_MAX: Duration = Duration::from_millis(350);

/// A report contains what was dispatched at least this long before it came.
const REPORT_DELAY: Duration = Duration::from_millis(10);

/// Dispatches remembered per worker; at the limit the oldest are taken as reported.
const DISPATCHES_MAX: usize = 1024;

/// Assumed while no worker of a numerics id has made a step.
const UNMEASURED: LatencyModel = LatencyModel {
    step_us: 5_000.0,
    prefill_token_us: 200.0,
    prefill_attended_us: 0.0,
    sequence_us: 500.0,
    attended_us: 0.0,
};

/// One worker's life.
pub struct WorkerEntry {
    /// Who it is and what it serves.
    pub registration: v1::WorkerRegistration,
    /// What it last said.
    pub load: v1::LoadReport,
    /// How long its steps take.
    pub latency: LatencyModel,
    heard: Instant,
    /// Time for the prompts that it reported as waiting, in microseconds.
    reported_queue_us: f32,
    dispatched: VecDeque<Dispatch>,
}

struct Dispatch {
    at: Instant,
    /// When its prompt is predicted to be computed.
    computed: Instant,
    prefill_us: f32,
    tokens: u64,
}

impl WorkerEntry {
    /// A worker that just registered and counts as idle until it reports; its steps are assumed to
    /// take as long as those of its equals.
    pub fn new(
        registration: v1::WorkerRegistration,
        equals: Option<LatencyModel>,
        now: Instant,
    ) -> Self {
        let load = v1::LoadReport { free_blocks: registration.kv_blocks, ..Default::default() };
        Self {
            registration,
            load,
            latency: equals.unwrap_or(UNMEASURED),
            heard: now,
            reported_queue_us: 0.0,
            dispatched: VecDeque::new(),
        }
    }

    /// Takes a report in; it supersedes what was dispatched before it was made. What the worker
    /// has not measured is taken from its equals.
    pub fn report(&mut self, load: v1::LoadReport, equals: Option<LatencyModel>, now: Instant) {
        self.latency = completed(load.latency, equals.unwrap_or(UNMEASURED));
        self.reported_queue_us = match load.waiting_prompt_tokens {
            0 => 0.0,
            tokens => self.latency.predict_prefill_us(0.0, tokens as f32, self.chunk_tokens()),
        };
        self.load = load;
        self.heard = now;
        self.dispatched.retain(|dispatch| now < dispatch.at + REPORT_DELAY);
    }

    /// Counts a request sent here: its prompt takes `prefill_us` and is predicted to be computed
    /// `ttft` from now; it will have about `tokens` tokens.
    pub fn dispatch(&mut self, prefill_us: f32, ttft: Duration, tokens: u64, now: Instant) {
        if self.dispatched.len() >= DISPATCHES_MAX {
            self.dispatched.pop_front();
        }
        let computed = now + ttft;
        self.dispatched.push_back(Dispatch { at: now, computed, prefill_us, tokens });
    }

    /// Whether it was heard of lately.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) <= REPORT_AGE_MAX
    }

    /// Time until it begins to compute a new prompt, in microseconds.
    pub fn queue_us(&self, now: Instant) -> f32 {
        let waiting = self.dispatched.iter().filter(|dispatch| now < dispatch.computed);
        self.reported_queue_us + waiting.map(|dispatch| dispatch.prefill_us).sum::<f32>()
    }

    /// Streams that share its steps.
    pub fn streams(&self) -> usize {
        self.load.running_sequences as usize
            + self.load.waiting_sequences as usize
            + self.dispatched.len()
    }

    /// Tokens present in those streams.
    pub fn stream_tokens(&self) -> u64 {
        self.load.running_tokens
            + self.load.waiting_prompt_tokens
            + self.dispatched.iter().map(|dispatch| dispatch.tokens).sum::<u64>()
    }

    /// Whether a new sequence of so many tokens could have blocks.
    pub fn has_room(&self, tokens: usize) -> bool {
        let blocks = self.load.free_blocks as usize + self.load.cached_blocks as usize;
        blocks > tokens / self.block_size()
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.registration.block_size.max(1) as usize
    }

    /// Prompt tokens that one of its steps computes at most.
    pub fn chunk_tokens(&self) -> f32 {
        self.registration.max_num_batched_tokens.max(1) as f32
    }
}

/// A worker that only decodes has learned nothing of prompts, and one that only prefills nothing
/// of streams.
fn completed(measured: Option<LatencyModel>, equals: LatencyModel) -> LatencyModel {
    let Some(mut model) = measured else { return equals };
    if model.prefill_token_us == 0.0 && model.prefill_attended_us == 0.0 {
        (model.prefill_token_us, model.prefill_attended_us) =
            (equals.prefill_token_us, equals.prefill_attended_us);
    }
    if model.sequence_us == 0.0 && model.attended_us == 0.0 {
        (model.sequence_us, model.attended_us) = (equals.sequence_us, equals.attended_us);
    }
    model
}
