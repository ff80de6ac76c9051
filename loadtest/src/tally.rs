//! What was counted, of all requests or of some.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::figures::{Times, times};

/// Different messages of failures that are told apart; the rest are counted together.
const MESSAGES_MAX: usize = 32;
const OTHER_MESSAGES: &str = "(other messages)";

/// How requests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Endings {
    /// A whole stream, up to `[DONE]`.
    pub ok: u64,
    /// HTTP 429 or 503.
    pub rejected: u64,
    /// No answer, or an error instead of one.
    pub failed: u64,
    /// A stream that broke off.
    pub cut: u64,
    /// Still running when the run ended.
    pub unfinished: u64,
    /// Not sent, because too many were under way.
    pub dropped: u64,
}

impl Endings {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.ok + self.rejected + self.failed + self.cut + self.unfinished + self.dropped
    }
}

/// Counts that can be added up.
pub struct Tally {
    pub endings: Endings,
    /// Failures by their message.
    pub failures: BTreeMap<String, u64>,
    /// Intended beginning to first content.
    pub ttft: Times,
    /// Between one event with content and the next.
    pub itl: Times,
    /// Per request, the mean time of an output token after the first.
    pub tpot: Times,
    /// Intended beginning to `[DONE]`.
    pub end_to_end: Times,
    /// Intended beginning to the sending of the request.
    pub lateness: Times,
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub output_tokens: u64,
    /// Events with content.
    pub events: u64,
    /// Requests that met every objective.
    pub good: u64,
    /// When the last whole stream ended.
    pub last_end: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            endings: Endings::default(),
            failures: BTreeMap::new(),
            ttft: times(),
            itl: times(),
            tpot: times(),
            end_to_end: times(),
            lateness: times(),
            prompt_tokens: 0,
            cached_prompt_tokens: 0,
            output_tokens: 0,
            events: 0,
            good: 0,
            last_end: None,
        }
    }
}

impl Tally {
    /// Counts a failure's message.
    pub fn failure(&mut self, message: &str, count: u64) {
        let known = self.failures.contains_key(message) || self.failures.len() < MESSAGES_MAX;
        let key = if known { message } else { OTHER_MESSAGES };
        *self.failures.entry(key.into()).or_default() += count;
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        let (ours, theirs) = (&mut self.endings, &other.endings);
        ours.ok += theirs.ok;
        ours.rejected += theirs.rejected;
        ours.failed += theirs.failed;
        ours.cut += theirs.cut;
        ours.unfinished += theirs.unfinished;
        ours.dropped += theirs.dropped;
        for (message, count) in &other.failures {
            self.failure(message, *count);
        }
        for (ours, theirs) in [
            (&mut self.ttft, &other.ttft),
            (&mut self.itl, &other.itl),
            (&mut self.tpot, &other.tpot),
            (&mut self.end_to_end, &other.end_to_end),
            (&mut self.lateness, &other.lateness),
        ] {
            ours.add(theirs).expect("all histograms have the same bounds");
        }
        self.prompt_tokens += other.prompt_tokens;
        self.cached_prompt_tokens += other.cached_prompt_tokens;
        self.output_tokens += other.output_tokens;
        self.events += other.events;
        self.good += other.good;
        self.last_end = self.last_end.max(other.last_end);
    }
}
