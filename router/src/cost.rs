//! What a choice of workers is predicted to cost, in microseconds: the time to the first token,
//! and by how much streams are slowed down.

use std::time::Instant;

use crate::worker_table::WorkerEntry;

/// Assumed until a worker (or one of its numerics id) has measured itself.
pub const PREFILL_US_PER_TOKEN: f32 = 200.0;
const DECODE_STEP_US: f32 = 10_000.0;

/// Asking another worker for a prompt: call, lease, and the last blocks' way after the last chunk.
const HANDOFF_US: f32 = 1_500.0;

/// Bytes moved per microsecond (a memcpy's 10 GB/s).
const TRANSFER_BYTES_PER_US: f32 = 10_000.0;

/// A choice without room for its blocks waits about this long for some.
const NO_ROOM_US: f32 = 1_000_000.0;

/// What a prediction takes for granted.
#[derive(Clone, Copy)]
pub struct Assumed {
    /// The present.
    pub now: Instant,
    /// The speed of a worker that has not measured itself: that of its equals, where one has.
    pub us_per_token: f32,
}

/// A prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// Streams that a decode worker is assumed to get while it computes a prompt, because it is there
/// to decode.
const STREAMS_EXPECTED: f32 = 0.5;

/// The decode worker computes the prompt itself: all its streams wait for that.
pub fn local(
    decode: &WorkerEntry,
    prompt_tokens: usize,
    cached_tokens: usize,
    assumed: Assumed,
) -> Cost {
    let prefill_us = prefill_us(decode, prompt_tokens, cached_tokens, assumed);
    let streams = (decode.streams() as f32).max(STREAMS_EXPECTED);
    Cost {
        ttft_us: queue_us(decode, assumed) + prefill_us,
        slowdown_us: prefill_us * streams + decode_us(decode, prompt_tokens),
    }
}

/// A prefill worker computes the prompt; what the decode worker lacks of it moves.
pub fn remote(
    prefill: &WorkerEntry,
    decode: &WorkerEntry,
    prompt_tokens: usize,
    cached_at_prefill: usize,
    cached_at_decode: usize,
    assumed: Assumed,
) -> Cost {
    let block_size = decode.registration.block_size.max(1) as usize;
    let missing_blocks = prompt_tokens.saturating_sub(cached_at_decode).div_ceil(block_size);
    let missing_bytes = missing_blocks as f32 * decode.registration.block_bytes as f32;
    let transfer_us = missing_bytes / TRANSFER_BYTES_PER_US;
    Cost {
        ttft_us: queue_us(prefill, assumed)
            + prefill_us(prefill, prompt_tokens, cached_at_prefill, assumed),
        slowdown_us: HANDOFF_US + transfer_us + decode_us(decode, prompt_tokens),
    }
}

fn queue_us(worker: &WorkerEntry, assumed: Assumed) -> f32 {
    worker.queued_tokens(assumed.now) as f32 * us_per_token(worker, assumed)
}

fn prefill_us(
    worker: &WorkerEntry,
    prompt_tokens: usize,
    cached_tokens: usize,
    assumed: Assumed,
) -> f32 {
    // The last token is always computed: its logits are the first output token's.
    let uncached = prompt_tokens.saturating_sub(cached_tokens).max(1);
    uncached as f32 * us_per_token(worker, assumed)
}

/// One more stream among those of a decode worker: a share of a step for each, and a wait where
/// there is no room.
fn decode_us(decode: &WorkerEntry, prompt_tokens: usize) -> f32 {
    let measured = decode.load.decode_step_us;
    let step_us = if measured > 0.0 { measured } else { DECODE_STEP_US };
    let block_size = decode.registration.block_size.max(1) as usize;
    let has_room = decode.available_blocks() > prompt_tokens / block_size;
    step_us * decode.streams() as f32 + if has_room { 0.0 } else { NO_ROOM_US }
}

fn us_per_token(worker: &WorkerEntry, assumed: Assumed) -> f32 {
    let measured = worker.load.prefill_us_per_token;
    if measured > 0.0 { measured } else { assumed.us_per_token }
}
