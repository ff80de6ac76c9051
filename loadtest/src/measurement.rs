//! The times of one request, taken as they come and counted when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::exchange::{Answer, Failure};
use crate::figures::record;
use crate::recorder::Recorder;
use crate::tally::Tally;

/// Gaps that are kept before they are counted.
const GAPS_MAX: usize = 1024;

/// A request that runs. Dropped before its end, it counts as unfinished.
pub struct Measurement {
    recorder: Arc<Recorder>,
    /// Of the request, in order of beginning.
    number: u64,
    /// The intended beginning: all latencies count from here.
    since: Instant,
    first: Option<Instant>,
    last: Instant,
    events: u64,
    gaps: Vec<Duration>,
    ended: bool,
}

impl Measurement {
    /// Of a request that should begin at `since`.
    pub fn begin(recorder: Arc<Recorder>, since: Instant) -> Self {
        let number = recorder.live.begun.fetch_add(1, Relaxed);
        let (first, last, gaps) = (None, since, Vec::new());
        Self { recorder, number, since, first, last, events: 0, gaps, ended: false }
    }

    /// The request goes out now.
    pub fn sent(&self) {
        let late = self.since.elapsed();
        self.count(|tally| record(&mut tally.lateness, late));
    }

    /// An event with content came.
    pub fn content(&mut self, at: Instant) {
        self.recorder.live.events.fetch_add(1, Relaxed);
        self.events += 1;
        match self.first {
            None => self.first = Some(at),
            Some(_) => self.gaps.push(at - self.last),
        }
        self.last = at;
        if self.gaps.len() == GAPS_MAX {
            self.count(|tally| count_gaps(tally, &self.gaps));
            self.gaps.clear();
        }
    }

    /// The stream is whole.
    pub fn answered(mut self, answer: &Answer) {
        let usage = answer.usage.unwrap_or_default();
        let counted = Some(usage.completion_tokens).filter(|tokens| *tokens > 0);
        let tokens = counted.unwrap_or(self.events);
        let tpot = self.time_per_token(tokens);
        let good = self.is_good(tpot);
        self.end(|tally| {
            tally.endings.ok += 1;
            record(&mut tally.end_to_end, answer.done_at - self.since);
            if let Some(tpot) = tpot {
                record(&mut tally.tpot, tpot);
            }
            tally.prompt_tokens += usage.prompt_tokens;
            tally.cached_prompt_tokens += usage.cached_tokens();
            tally.output_tokens += tokens;
            tally.good += u64::from(good);
            tally.last_end = tally.last_end.max(Some(answer.done_at));
        });
        self.recorder.live.ok.fetch_add(1, Relaxed);
        self.ended = true;
    }

    /// There is no whole stream.
    pub fn failed(mut self, failure: &Failure) {
        self.end(|tally| {
            let endings = &mut tally.endings;
            *match failure {
                Failure::Rejected(_) => &mut endings.rejected,
                Failure::Failed(_) => &mut endings.failed,
                Failure::Cut(_) => &mut endings.cut,
            } += 1;
            tally.failure(failure.message(), 1);
        });
        self.ended = true;
    }

    fn time_per_token(&self, tokens: u64) -> Option<Duration> {
        let more = u32::try_from(tokens.checked_sub(1)?).ok().filter(|more| *more > 0)?;
        Some((self.last - self.first?) / more)
    }

    fn is_good(&self, tpot: Option<Duration>) -> bool {
        let within = |limit_ms: Option<f64>, time: Option<Duration>, without: bool| match limit_ms {
            None => true,
            Some(limit) => time.map_or(without, |time| time.as_secs_f64() * 1000.0 <= limit),
        };
        let ttft = self.first.map(|first| first - self.since);
        let objectives = &self.recorder.objectives;
        within(objectives.ttft_ms, ttft, false) && within(objectives.itl_ms, tpot, true)
    }

    /// Counts an ending, and what its client saw before.
    fn end(&self, ending: impl FnOnce(&mut Tally)) {
        self.count(|tally| {
            if let Some(first) = self.first {
                record(&mut tally.ttft, first - self.since);
            }
            count_gaps(tally, &self.gaps);
            tally.events += self.events;
            ending(tally);
        });
        self.recorder.live.ended.fetch_add(1, Relaxed);
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        if self.since >= self.recorder.window.measured_from {
            count(&mut self.recorder.tally(self.number));
        }
    }
}

impl Drop for Measurement {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let waited = self.since.elapsed();
        let bound = self.recorder.drain_is_over.load(Relaxed);
        self.end(|tally| {
            tally.endings.unfinished += 1;
            if bound {
                record(&mut tally.end_to_end, waited);
            }
            if bound && self.first.is_none() {
                record(&mut tally.ttft, waited);
            }
        });
    }
}

fn count_gaps(tally: &mut Tally, gaps: &[Duration]) {
    gaps.iter().for_each(|gap| record(&mut tally.itl, *gap));
}
