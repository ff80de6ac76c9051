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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Usage;
    use crate::figures::Figures;
    use crate::recorder::{Objectives, Window};

    fn recorder(warmup_ms: u64, ttft_ms: Option<f64>, itl_ms: Option<f64>) -> Arc<Recorder> {
        let (warmup, second) = (Duration::from_millis(warmup_ms), Duration::from_secs(1));
        let window = Window::from_now(warmup, second, second);
        Arc::new(Recorder::new(window, Objectives { ttft_ms, itl_ms }))
    }

    /// A request whose content comes at these times after it should have been sent.
    fn answer(recorder: &Arc<Recorder>, content_ms: &[u64], done_ms: u64, tokens: Option<u64>) {
        let since = recorder.window.begin;
        let at = |ms| since + Duration::from_millis(ms);
        let mut measurement = Measurement::begin(recorder.clone(), since);
        content_ms.iter().for_each(|ms| measurement.content(at(*ms)));
        let usage = tokens.map(|completion_tokens| Usage {
            prompt_tokens: 3,
            completion_tokens,
            prompt_tokens_details: None,
        });
        measurement.answered(&Answer { text: String::new(), usage, done_at: at(done_ms) });
    }

    #[test]
    fn times_count_from_the_intended_beginning() {
        let recorder = recorder(0, None, None);
        answer(&recorder, &[100, 110, 150], 160, Some(6));
        let total = recorder.total();
        let mean = |times| Figures::of(times).map(|figures| figures.mean.round());
        assert_eq!(mean(&total.ttft), Some(100.0));
        assert_eq!((mean(&total.itl), total.itl.len()), (Some(25.0), 2));
        assert_eq!(mean(&total.tpot), Some(10.0));
        assert_eq!(mean(&total.end_to_end), Some(160.0));
        assert_eq!((total.events, total.output_tokens, total.prompt_tokens), (3, 6, 3));
        assert_eq!(recorder.live.running(), 0);
    }

    #[test]
    fn a_request_is_good_if_it_meets_every_objective() {
        #[track_caller]
        fn check(objectives: (Option<f64>, Option<f64>), content_ms: &[u64], good: bool) {
            let recorder = recorder(0, objectives.0, objectives.1);
            answer(&recorder, content_ms, 1000, None);
            assert_eq!(recorder.total().good == 1, good, "{objectives:?} {content_ms:?}");
        }
        check((Some(100.0), None), &[100, 900], true);
        check((Some(99.9), None), &[100, 101], false);
        check((None, Some(20.0)), &[500, 510, 540], true);
        check((None, Some(19.9)), &[500, 510, 540], false);
        check((Some(100.0), Some(20.0)), &[100, 120], true);
        check((Some(100.0), Some(20.0)), &[100, 121], false);
        check((Some(100.0), Some(20.0)), &[101, 120], false);
        // One token has no time between tokens; no token has no first.
        check((Some(100.0), Some(20.0)), &[100], true);
        check((Some(100.0), None), &[], false);
        check((None, Some(20.0)), &[], true);
    }

    #[test]
    fn long_streams_lose_no_gap() {
        let recorder = recorder(0, None, None);
        let content_ms: Vec<u64> = (0..5000).collect();
        answer(&recorder, &content_ms, 5000, None);
        let total = recorder.total();
        assert_eq!((total.itl.len(), total.output_tokens), (4999, 5000));
    }

    #[test]
    fn requests_end_once_whatever_becomes_of_them() {
        let recorder = recorder(0, None, None);
        let begin = || Measurement::begin(recorder.clone(), recorder.window.begin);
        begin().failed(&Failure::Cut("c".into()));
        begin().failed(&Failure::Failed("f".into()));
        begin().failed(&Failure::Rejected("r".into()));
        answer(&recorder, &[1], 2, None);
        drop(begin());
        let interrupted = recorder.total();
        let ended = interrupted.endings;
        assert_eq!((ended.ok, ended.cut, ended.failed, ended.rejected), (1, 1, 1, 1));
        assert_eq!((ended.unfinished, ended.total(), recorder.live.running()), (1, 5, 0));
        assert_eq!(interrupted.end_to_end.len(), 1);
        recorder.drain_is_over.store(true, Relaxed);
        drop(begin());
        assert_eq!(recorder.total().end_to_end.len(), 2);
        assert_eq!(recorder.total().ttft.len(), 2);
    }

    #[test]
    fn the_warm_up_is_not_counted() {
        let recorder = recorder(10, None, None);
        answer(&recorder, &[1], 2, None);
        recorder.drop_arrival(recorder.window.begin);
        assert_eq!(recorder.total().endings.total(), 0);
        recorder.drop_arrival(recorder.window.measured_from);
        assert_eq!(recorder.total().endings.dropped, 1);
    }
}
