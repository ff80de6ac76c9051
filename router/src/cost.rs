//! What a choice of workers is predicted to cost, in microseconds: the time to the first token,
//! and by how much streams are slowed down. Both halves of a pair are predicted alone, and what lies
//! between them then.

use protocol::last_step_tokens;
use protocol::link::TransferRate;
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

/// A decode worker takes a prompt over that was computed elsewhere.
pub fn receive() -> Cost {
    Cost { ttft_us: HANDOFF_US, slowdown_us: 0.0 }
}

/// How a prefill worker computes a prompt that another one pulls: what of the transfer that hides.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Tokens that it computes …
    tokens: f32,
    /// … and that its last step does.
    last_tokens: f32,
    /// Time of all steps, and of those after the first.
    all_us: f32,
    after_first_us: f32,
}

impl Window {
    /// That of one worker.
    pub fn new(prefill: &Gauge, sizes: Sizes, cached_tokens: u32) -> Self {
        let (cached, tokens) = computed(sizes, cached_tokens);
        let (latency, chunk) = (&prefill.latency, prefill.chunk_tokens);
        Self {
            tokens,
            last_tokens: last_step_tokens(cached, tokens, chunk),
            all_us: latency.predict_pulled_us(cached, tokens, chunk),
            after_first_us: latency.predict_after_first_step_us(cached, tokens, chunk),
        }
    }

    /// By how much the second token is late because KV is still under way, in microseconds: what the
    /// decode worker lacks of the prompt, so many tokens, moves while the prefill worker computes on, each
    /// chunk once it is there. What the last step made always comes after it.
    pub fn exposed_us(&self, missing_tokens: f32, token_bytes: f32, rate: TransferRate) -> f32 {
        if missing_tokens <= 0.0 {
            return 0.0;
        }
        let token_us = token_bytes * rate.byte_us;
        let last = self.last_tokens.min(missing_tokens);
        let before_us = (missing_tokens - last) * token_us;
        // What the prefill worker had cached needs not wait for its first step.
        let at_once_us = (missing_tokens - self.tokens).max(0.0) * token_us;
        let hidden_us = self.after_first_us + at_once_us.min(self.all_us - self.after_first_us);
        (before_us - hidden_us).max(0.0) + rate.copy_us + last * token_us
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that computes a token in 10 us and a step in 100 us more, in chunks of 512 tokens of 1,000
    /// bytes each.
    fn worker() -> Gauge {
        let latency = LatencyModel::from_coefficients([100.0, 10.0, 0.0, 0.0, 0.0]);
        Gauge { latency, chunk_tokens: 512.0, token_bytes: 1_000.0, ..Default::default() }
    }

    #[test]
    fn only_what_computing_does_not_hide_is_exposed() {
        let check = |prompt, decode_tokens, prefill_tokens, token_us: f32, expected_us: f32| {
            let sizes = Sizes { prompt, answer_max: 1 };
            let missing = prompt.saturating_sub(decode_tokens) as f32;
            let rate = TransferRate { copy_us: 7.0, byte_us: token_us / 1_000.0 };
            let window = Window::new(&worker(), sizes, prefill_tokens);
            let found = window.exposed_us(missing, worker().token_bytes, rate);
            assert!((found - expected_us).abs() < 0.5, "{prompt} {token_us}: {found}");
        };
        // One step makes all of it.
        check(512, 0, 0, 1.0, 7.0 + 512.0);
        // The last 64 tokens of a long one come last, and all before them is hidden …
        check(2_048, 0, 0, 1.0, 7.0 + 64.0);
        // … unless it takes longer than the steps after the first: 1,536 tokens in four steps.
        check(2_048, 0, 0, 10.0, 1_984.0 * 10.0 - (15_360.0 + 400.0) + 7.0 + 640.0);
        // What both have, nothing moves for.
        check(2_048, 2_048, 2_048, 10.0, 0.0);
        check(2_048, 2_040, 0, 10.0, 7.0 + 80.0);
        // What the prefill worker has moves from the start on, while it computes the rest.
        check(1_000, 0, 900, 1.0, 7.0 + 100.0);
        check(1_000, 0, 900, 10.0, 9_000.0 - 1_100.0 + 7.0 + 1_000.0);
    }
}
