//! What a choice of workers is predicted to cost, in microseconds: the time to the first token,
//! and by how much streams are slowed down. Both halves of a pair are predicted alone, so that the
//! best pair is the best of each.

use protocol::v1::LatencyModel;

use crate::gauge::Gauge;
use crate::worker_table::Time;

/// Asking another worker for a prompt: call, lease, and the first token's way.
const HANDOFF_US: f32 = 1_500.0;

/// A choice without room for its blocks waits about this long for some.
const NO_ROOM_US: f32 = 1_000_000.0;

/// Answers are assumed to have this many tokens, or fewer where the request allows no more.
const ANSWER_TOKENS: u32 = 64;

/// Streams that come to a decode worker while it computes a prompt are held up by it too; it is
/// there to decode. One per second is assumed.
const STREAMS_PER_US: f32 = 1e-6;

/// A request's sizes, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Its prompt.
    pub prompt: u32,
    /// Its answer at most.
    pub answer_max: u32,
}

/// A prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Until the first token.
    pub ttft_us: f32,
    /// Added to the streams, this request's own among them.
    pub slowdown_us: f32,
}

impl Cost {
    /// What is minimised.
    pub fn total_us(&self) -> f32 {
        self.ttft_us + self.slowdown_us
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ttft_us: self.ttft_us + other.ttft_us,
            slowdown_us: self.slowdown_us + other.slowdown_us,
        }
    }
}

/// Computing the rest of a prompt in one worker, alone and without its queue, in microseconds.
pub fn prefill_us(worker: &Gauge, sizes: Sizes, cached_tokens: u32) -> f32 {
    let (cached, tokens) = computed(sizes, cached_tokens);
    worker.latency.predict_prefill_us(cached, tokens, worker.chunk_tokens)
}

/// The same for a prompt that another worker pulls.
pub fn pulled_prefill_us(worker: &Gauge, sizes: Sizes, cached_tokens: u32) -> f32 {
    let (cached, tokens) = computed(sizes, cached_tokens);
    worker.latency.predict_pulled_us(cached, tokens, worker.chunk_tokens)
}

/// Tokens of a prompt that are there, and those that are to be computed.
fn computed(sizes: Sizes, cached_tokens: u32) -> (f32, f32) {
    // The last token is always computed: its logits are the first output token's.
    let tokens = sizes.prompt.saturating_sub(cached_tokens).max(1);
    (sizes.prompt.saturating_sub(tokens) as f32, tokens as f32)
}

/// The decode worker computes the prompt itself: all its streams wait for that.
pub fn local(decode: &Gauge, sizes: Sizes, cached_tokens: u32, now: Time) -> Cost {
    let prefill_us = prefill_us(decode, sizes, cached_tokens);
    let streams = decode.streams + STREAMS_PER_US * prefill_us;
    let ttft_us = decode.queue_us(now) + prefill_us;
    Cost { ttft_us, slowdown_us: prefill_us * streams }
}

/// A prefill worker computes the prompt for someone.
pub fn prefill(worker: &Gauge, sizes: Sizes, cached_tokens: u32, now: Time) -> Cost {
    let ttft_us = worker.queue_us(now) + pulled_prefill_us(worker, sizes, cached_tokens);
    Cost { ttft_us: ttft_us + wait_us(worker, sizes), slowdown_us: 0.0 }
}

/// A decode worker takes a prompt over that was computed elsewhere; what it lacks of it moves.
pub fn receive(decode: &Gauge, sizes: Sizes, cached_tokens: u32) -> Cost {
    let missing = sizes.prompt.saturating_sub(cached_tokens);
    Cost { ttft_us: HANDOFF_US, slowdown_us: missing as f32 * decode.move_token_us }
}

/// One more stream among those of a decode worker: its own steps, what it adds to those of the
/// others, and a wait where there is no room.
pub fn stream(decode: &Gauge, sizes: Sizes) -> Cost {
    let answer = ANSWER_TOKENS.min(sizes.answer_max) as f32;
    let context = sizes.prompt as f32 + answer / 2.0;
    let LatencyModel { step_us, sequence_us, attended_us, .. } = decode.latency;
    let added_us = sequence_us + attended_us * context;
    let present_us = decode.streams * sequence_us + decode.stream_tokens * attended_us;
    let own_us = step_us + present_us + added_us;
    let slowdown_us = answer * (own_us + decode.streams * added_us);
    Cost { ttft_us: 0.0, slowdown_us: slowdown_us + wait_us(decode, sizes) }
}

fn wait_us(worker: &Gauge, sizes: Sizes) -> f32 {
    if (sizes.prompt as f32) < worker.room_tokens { 0.0 } else { NO_ROOM_US }
}
