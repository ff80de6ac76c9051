//! What was counted, of all requests or of some.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::figures::{Times, times};

/// Kinds of failures that are told apart; the rest are counted together.
const KINDS_MAX: usize = 32;
const OTHER: &str = "(other messages)";

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

/// A kind of failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// The first message of its kind; others may have other numbers in it.
    pub message: String,
    pub count: u64,
}

/// Counts that can be added up.
pub struct Tally {
    pub endings: Endings,
    /// Failures by what their messages have in common.
    pub failures: BTreeMap<String, FailureCount>,
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
    /// Counts failures with this message.
    pub fn failure(&mut self, message: &str, count: u64) {
        let kind = kind(message);
        let known = self.failures.contains_key(&kind) || self.failures.len() < KINDS_MAX;
        let (kind, message) = if known { (kind, message) } else { (OTHER.into(), OTHER) };
        let first = FailureCount { message: message.into(), count: 0 };
        self.failures.entry(kind).or_insert(first).count += count;
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
        for failure in other.failures.values() {
            self.failure(&failure.message, failure.count);
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

/// The message without the numbers after its first colon: before that are status codes, after it
/// are counts that differ from request to request.
fn kind(message: &str) -> String {
    let (code, text) = message.split_once(':').unwrap_or((message, ""));
    let parts = text.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty());
    std::iter::once(code).chain(parts).collect::<Vec<_>>().join("#")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_grouped_by_what_they_have_in_common() {
        let mut tally = Tally::default();
        for message in ["HTTP 400: 17 is too much", "HTTP 400: 8000 is too much", "HTTP 500: no"] {
            tally.failure(message, 1);
        }
        let mut total = Tally::default();
        total.add(&tally);
        total.add(&tally);
        let counts: Vec<_> = total.failures.values().map(|f| (&*f.message, f.count)).collect();
        assert_eq!(counts, [("HTTP 400: 17 is too much", 4), ("HTTP 500: no", 2)]);
    }

    #[test]
    fn failures_of_too_many_kinds_are_counted_together() {
        let mut tally = Tally::default();
        let kinds = 2 * KINDS_MAX as u64;
        (0..kinds).for_each(|number| tally.failure(&format!("HTTP {number}: no"), 1));
        assert_eq!(tally.failures.len(), KINDS_MAX + 1);
        assert_eq!(tally.failures[OTHER].count, kinds - KINDS_MAX as u64);
    }
}
