//! What the router knows of each worker: its registration, its last load report, and what was
//! dispatched to it since.

use std::collections::VecDeque;

use protocol::v1::{self, LatencyModel};

/// Microseconds since the router began.
pub type Time = u64;

/// A worker that missed three reports is passed over, unless all have.
const REPORT_AGE_MAX: Time = 350_000;

/// A report contains what was dispatched at least this long before it came.
const REPORT_DELAY: Time = 10_000;

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

/// One worker's life. What decisions look at lies close together.
pub struct WorkerEntry {
    /// Who it is and what it serves.
    pub registration: Box<v1::WorkerRegistration>,
    /// How long its steps take.
    pub latency: LatencyModel,
    heard: Time,
    /// When it will have computed all prompts that were sent to it.
    busy_until: Time,
    reported: Reported,
    /// Sent here since what the last report contains.
    dispatched: VecDeque<Dispatch>,
    /// Their tokens, summed up.
    dispatched_tokens: u64,
}

/// What the last report said.
#[derive(Default)]
struct Reported {
    streams: u32,
    stream_tokens: u64,
    available_blocks: u32,
}

struct Dispatch {
    at: Time,
    /// What its prompt takes here.
    prefill_us: Time,
    tokens: u64,
}

impl WorkerEntry {
    /// A worker that just registered and counts as idle until it reports; its steps are assumed to
    /// take as long as those of its equals.
    pub fn new(
        registration: v1::WorkerRegistration,
        equals: Option<LatencyModel>,
        now: Time,
    ) -> Self {
        let available_blocks = registration.kv_blocks;
        Self {
            registration: Box::new(registration),
            reported: Reported { available_blocks, ..Default::default() },
            latency: equals.unwrap_or(UNMEASURED),
            heard: now,
            busy_until: now,
            dispatched: VecDeque::new(),
            dispatched_tokens: 0,
        }
    }

    /// Takes a report in; it supersedes what was dispatched before it was made. What the worker
    /// has not measured is taken from its equals.
    pub fn report(&mut self, load: &v1::LoadReport, equals: Option<LatencyModel>, now: Time) {
        self.latency = completed(load.latency, equals.unwrap_or(UNMEASURED));
        let waiting_tokens = load.waiting_prompt_tokens as f32;
        let waiting_us = match load.waiting_prompt_tokens {
            0 => 0.0,
            _ => self.latency.predict_prefill_us(0.0, waiting_tokens, self.chunk_tokens()),
        };
        self.reported = Reported {
            streams: load.running_sequences.saturating_add(load.waiting_sequences),
            stream_tokens: load.running_tokens.saturating_add(load.waiting_prompt_tokens),
            available_blocks: load.free_blocks.saturating_add(load.cached_blocks),
        };
        self.heard = now;
        self.dispatched.retain(|dispatch| now < dispatch.at + REPORT_DELAY);
        self.dispatched_tokens = self.dispatched.iter().map(|dispatch| dispatch.tokens).sum();
        let unreported: Time = self.dispatched.iter().map(|dispatch| dispatch.prefill_us).sum();
        self.busy_until = now + waiting_us as Time + unreported;
    }

    /// Counts a request sent here, whose prompt of `tokens` tokens takes `prefill_us` of its time.
    pub fn dispatch(&mut self, prefill_us: f32, tokens: u64, now: Time) {
        if self.dispatched.len() >= DISPATCHES_MAX
            && let Some(oldest) = self.dispatched.pop_front()
        {
            self.dispatched_tokens -= oldest.tokens;
        }
        let prefill_us = prefill_us as Time;
        self.busy_until = self.busy_until.max(now) + prefill_us;
        self.dispatched_tokens += tokens;
        self.dispatched.push_back(Dispatch { at: now, prefill_us, tokens });
    }

    /// Whether it was heard of lately.
    pub fn is_fresh(&self, now: Time) -> bool {
        now.saturating_sub(self.heard) <= REPORT_AGE_MAX
    }

    /// Time until it begins to compute a new prompt, in microseconds.
    pub fn queue_us(&self, now: Time) -> f32 {
        self.busy_until.saturating_sub(now) as f32
    }

    /// Streams that share its steps.
    pub fn streams(&self) -> usize {
        self.reported.streams as usize + self.dispatched.len()
    }

    /// Tokens present in those streams.
    pub fn stream_tokens(&self) -> u64 {
        self.reported.stream_tokens + self.dispatched_tokens
    }

    /// Whether a new sequence of so many tokens could have blocks.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.reported.available_blocks as usize > tokens / self.block_size()
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
