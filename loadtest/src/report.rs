//! What a load test found: for people as a table (`Display`), for programs as JSON.

use std::time::Instant;

use serde::Serialize;

use crate::args::{Args, Arrivals};
use crate::calibrate::Calibration;
use crate::error::LoadtestError;
pub use crate::figures::Figures;
use crate::processes::ProcessUse;
use crate::recorder::Recorder;
use crate::tally::{Endings, FailureCount, Tally};

/// The report. Field names are stable; a field's unit is the last part of its name.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of these fields: grows when one changes its meaning.
    pub version: u32,
    pub configuration: Configuration,
    pub calibration: Calibration,
    /// Ctrl-C ended the run.
    pub interrupted: bool,
    /// The measured time: up to the end of `duration`, or of the last whole answer, or to Ctrl-C.
    pub elapsed_s: f64,
    pub requests: Endings,
    /// Why requests failed, were rejected or cut; the most frequent reason first.
    pub failures: Vec<FailureCount>,
    pub rates: Rates,
    pub tokens: Tokens,
    pub latency_ms: Latencies,
    /// `None` without an objective.
    pub goodput: Option<Goodput>,
    pub processes: Vec<ProcessUse>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    pub url: String,
    pub model: String,
    /// In an open loop.
    pub rate_per_s: Option<f64>,
    /// In an open loop.
    pub arrivals: Option<Arrivals>,
    /// In a closed loop.
    pub concurrency: Option<u32>,
    pub duration_s: f64,
    pub warmup_s: f64,
    pub drain_s: f64,
    pub input_tokens: u32,
    pub output_tokens: u32,
    pub prefix_tokens: u32,
    pub turns: u32,
    pub seed: u64,
    pub ignore_eos: bool,
    pub slo_ttft_ms: Option<f64>,
    pub slo_itl_ms: Option<f64>,
}

/// Of whole answers, over the measured time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    pub requests_per_s: f64,
    pub prompt_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
    /// Of all streams, also those that broke off.
    pub events_per_s: f64,
}

/// Sums over whole answers, as the server counts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tokens {
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub output_tokens: u64,
    /// Events with content, of all streams.
    pub events: u64,
    pub mean_prompt_tokens: f64,
    pub mean_output_tokens: f64,
}

/// Distributions, in milliseconds; `None` where there was nothing to measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    /// Arrival to the first event with content.
    pub ttft: Option<Figures>,
    /// Between events with content, over all gaps.
    pub itl: Option<Figures>,
    /// Per request, the mean time of an output token after the first.
    pub tpot: Option<Figures>,
    /// Arrival to the end of the stream.
    pub end_to_end: Option<Figures>,
    /// Arrival to the sending of the request: the generator's own lateness. Open loop only.
    pub lateness: Option<Figures>,
}

/// Requests that met every objective.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Goodput {
    pub requests: u64,
    pub requests_per_s: f64,
    /// Of all requests, whatever became of them.
    pub share: f64,
}

impl Report {
    pub(crate) fn new(
        args: &Args,
        model: String,
        calibration: Calibration,
        recorder: &Recorder,
        interrupted_at: Option<Instant>,
        processes: Vec<ProcessUse>,
    ) -> Self {
        let total = recorder.total();
        let window = &recorder.window;
        let end = interrupted_at.unwrap_or(window.end.max(total.last_end.unwrap_or(window.end)));
        let elapsed_s = end.saturating_duration_since(window.measured_from).as_secs_f64();
        let has_objective = args.slo_ttft_ms.is_some() || args.slo_itl_ms.is_some();
        Self {
            version: 1,
            configuration: Configuration::of(args, model),
            calibration,
            interrupted: interrupted_at.is_some(),
            elapsed_s,
            requests: total.endings,
            rates: Rates {
                requests_per_s: ratio(total.endings.ok, elapsed_s),
                prompt_tokens_per_s: ratio(total.prompt_tokens, elapsed_s),
                output_tokens_per_s: ratio(total.output_tokens, elapsed_s),
                events_per_s: ratio(total.events, elapsed_s),
            },
            tokens: Tokens {
                prompt_tokens: total.prompt_tokens,
                cached_prompt_tokens: total.cached_prompt_tokens,
                output_tokens: total.output_tokens,
                events: total.events,
                mean_prompt_tokens: ratio(total.prompt_tokens, total.endings.ok as f64),
                mean_output_tokens: ratio(total.output_tokens, total.endings.ok as f64),
            },
            latency_ms: Latencies::of(&total, args.rate.is_some()),
            goodput: has_objective.then(|| Goodput {
                requests: total.good,
                requests_per_s: ratio(total.good, elapsed_s),
                share: ratio(total.good, total.endings.total() as f64),
            }),
            failures: by_frequency(total),
            processes,
        }
    }

    /// The JSON of `--json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has string keys only")
    }

    /// Errors: there is no whole answer among the measured requests. The sentence says why.
    pub fn check_success(&self) -> Result<(), LoadtestError> {
        if self.requests.ok > 0 {
            return Ok(());
        }
        Err(LoadtestError::Server(match self.failures.first() {
            Some(most) => format!("no request succeeded: {}", most.message),
            None => "no request ended in time; run longer, or allow a longer --drain".into(),
        }))
    }
}

fn by_frequency(total: Tally) -> Vec<FailureCount> {
    let mut failures: Vec<_> = total.failures.into_values().collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    failures
}

/// 0 where there is nothing to divide by.
fn ratio(count: u64, by: f64) -> f64 {
    if by > 0.0 { count as f64 / by } else { 0.0 }
}

impl Configuration {
    fn of(args: &Args, model: String) -> Self {
        Self {
            url: args.url.clone(),
            model,
            rate_per_s: args.rate,
            arrivals: args.rate.map(|_| args.arrivals),
            concurrency: args.concurrency,
            duration_s: args.duration.as_secs_f64(),
            warmup_s: args.warmup.as_secs_f64(),
            drain_s: args.drain.as_secs_f64(),
            input_tokens: args.input_tokens,
            output_tokens: args.output_tokens,
            prefix_tokens: args.prefix_tokens,
            turns: args.turns,
            seed: args.seed,
            ignore_eos: !args.no_ignore_eos,
            slo_ttft_ms: args.slo_ttft_ms,
            slo_itl_ms: args.slo_itl_ms,
        }
    }
}

impl Latencies {
    fn of(total: &Tally, is_open: bool) -> Self {
        Self {
            ttft: Figures::of(&total.ttft),
            itl: Figures::of(&total.itl),
            tpot: Figures::of(&total.tpot),
            end_to_end: Figures::of(&total.end_to_end),
            lateness: Figures::of(&total.lateness).filter(|_| is_open),
        }
    }
}
