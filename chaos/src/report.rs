//! What a run found, as Markdown.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::load::{Outcome, Verdict};
use crate::memory::{self, Memory};
use crate::round::{Round, STREAMS_MIN};

/// Failures that are told one by one; the rest is counted.
const TOLD_MAX: usize = 40;

/// A run.
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Where the processes' logs are.
    pub logs: PathBuf,
    /// Its phases.
    pub phases: Vec<PhaseReport>,
}

/// A phase.
pub struct PhaseReport {
    /// Its name.
    pub name: String,
    /// Streams that ran at once.
    pub streams: usize,
    /// Its rounds, in order.
    pub rounds: Vec<Round>,
    /// Of each life of each process.
    pub memory: Vec<Memory>,
    /// Clusters that could be used no further, and why.
    pub broken: Vec<String>,
}

/// Rounds of one kind.
#[derive(Default)]
struct Row<'a> {
    rounds: Vec<&'a Round>,
}

impl Report {
    /// An empty one.
    pub fn new(seed: u64, logs: PathBuf) -> Self {
        Self { seed, logs, phases: Vec::new() }
    }

    /// Whether all went as it must.
    pub fn is_clean(&self) -> bool {
        let is_clean = |phase: &PhaseReport| {
            phase.broken.is_empty()
                && phase.all_counted()
                && phase.rounds.iter().all(Round::is_sound)
        };
        self.phases.iter().all(is_clean)
    }

    /// Answers that differ from the expected ones.
    pub fn wrong(&self) -> usize {
        self.rounds().map(Round::wrong).sum()
    }

    /// Requests without a whole answer.
    pub fn failed(&self) -> usize {
        self.rounds().map(Round::failed).sum()
    }

    /// Requests that went on in other hands.
    pub fn redispatched(&self) -> usize {
        self.rounds().map(|round| round.redispatched().len()).sum()
    }

    fn rounds(&self) -> impl Iterator<Item = &Round> {
        self.phases.iter().flat_map(|phase| &phase.rounds)
    }
}

impl PhaseReport {
    /// A strike that found no occasion was tried again; the last try must have counted.
    fn all_counted(&self) -> bool {
        let uncounted_last = self
            .rounds
            .windows(2)
            .any(|pair| !pair[0].is_counted() && pair[0].strike != pair[1].strike);
        !uncounted_last && self.rounds.last().is_none_or(Round::is_counted)
    }
}

/// A round in a line, for whoever watches.
pub fn line(round: &Round) -> String {
    let what = round.strike.as_ref().map_or("calm".into(), ToString::to_string);
    if !round.is_counted() {
        return format!("{what}: no occasion with {STREAMS_MIN} streams (and a pull, if wanted)");
    }
    let redispatched = round.redispatched();
    let held = match round.held.blocks + round.held.leases {
        0.0 => String::new(),
        _ => format!(", HELD {} blocks {} leases", round.held.blocks, round.held.leases),
    };
    let pull = round.strike.as_ref().is_some_and(|strike| strike.during_pull);
    format!(
        "{what} ({}{}): {} in flight, {} requests, {} failed, {} wrong, {} re-dispatched in {} ms \
         at most, longest stall {} ms{held}{}",
        round.victims,
        if pull { ", during a pull" } else { "" },
        round.in_flight(),
        round.outcomes.len(),
        round.failed(),
        round.wrong(),
        redispatched.len(),
        ms(redispatched.iter().max().copied().unwrap_or_default()),
        ms(round.longest_stall()),
        round.errors.iter().fold(String::new(), |all, error| format!("{all}; {error}")),
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for phase in &self.phases {
            write!(f, "{phase}")?;
        }
        let rounds = self.rounds().filter(|round| round.strike.is_some() && round.is_counted());
        writeln!(
            f,
            "Seed {}: {} counted faults, {} requests, {} failed, {} wrong. {}",
            self.seed,
            rounds.count(),
            self.rounds().map(|round| round.outcomes.len()).sum::<usize>(),
            self.failed(),
            self.wrong(),
            if self.is_clean() { "All as it must be." } else { "NOT as it must be." },
        )?;
        if !self.is_clean() {
            write!(f, "\n{}", self.complaints())?;
            writeln!(
                f,
                "Logs are in {}; `make chaos SEED={}` does it again.",
                self.logs.display(),
                self.seed
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for PhaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (single, overlapping): (Vec<_>, Vec<_>) =
            self.rounds.iter().filter(|round| round.is_counted()).partition(|round| {
                round.strike.as_ref().is_none_or(|strike| strike.faults.len() == 1)
            });
        writeln!(f, "### {} engine, {} streams\n", self.name, self.streams)?;
        write!(f, "{}", table(&single))?;
        if !overlapping.is_empty() {
            writeln!(f, "Two faults at once:\n")?;
            write!(f, "{}", table(&overlapping))?;
        }
        write!(f, "{}", memory::table(&self.memory))
    }
}

fn table(rounds: &[&Round]) -> String {
    let mut rows: BTreeMap<Vec<String>, Row> = BTreeMap::new();
    for round in rounds {
        let kind = round.strike.as_ref().map_or(Vec::new(), |strike| {
            strike.faults.iter().map(|fault| fault.kind.to_string()).collect()
        });
        rows.entry(kind).or_default().rounds.push(round);
    }
    let mut table = String::from(
        "| fault | count | during a pull | in flight | requests | failed | wrong bytes | \
         re-dispatched | after p50 / p99 / max, ms | next token after p50 / p99 / max, ms | \
         longest stall, ms | longest first token, ms | blocks, leases left |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (kind, row) in &rows {
        let name = if kind.is_empty() { "none".to_string() } else { kind.join(" + ") };
        let _infallible = writeln!(table, "| {name} | {} |", row.cells().join(" | "));
    }
    let all =
        Row { rounds: rounds.iter().filter(|round| round.strike.is_some()).copied().collect() };
    let _infallible = writeln!(table, "| **all** | {} |\n", all.cells().join(" | "));
    table
}

impl Row<'_> {
    fn cells(&self) -> Vec<String> {
        let sum =
            |of: fn(&Round) -> usize| self.rounds.iter().map(|round| of(round)).sum::<usize>();
        let max = |of: fn(&Round) -> Duration| self.rounds.iter().map(|round| of(round)).max();
        let redispatched = self.sorted(Round::redispatched);
        let held = |of: fn(&Round) -> f64| self.rounds.iter().map(|round| of(round)).sum::<f64>();
        vec![
            self.rounds.len().to_string(),
            sum(|round| round.strike.as_ref().is_some_and(|strike| strike.during_pull).into())
                .to_string(),
            sum(Round::in_flight).to_string(),
            sum(|round| round.outcomes.len()).to_string(),
            sum(Round::failed).to_string(),
            sum(Round::wrong).to_string(),
            redispatched.len().to_string(),
            percentiles(&redispatched),
            percentiles(&self.sorted(Round::went_on)),
            ms(max(Round::longest_stall).unwrap_or_default()),
            ms(max(Round::longest_first_token).unwrap_or_default()),
            format!("{}, {}", held(|round| round.held.blocks), held(|round| round.held.leases)),
        ]
    }
}

impl Row<'_> {
    fn sorted(&self, of: fn(&Round) -> Vec<Duration>) -> Vec<Duration> {
        let mut all: Vec<Duration> = self.rounds.iter().flat_map(|round| of(round)).collect();
        all.sort();
        all
    }
}

/// Of durations in order.
fn percentiles(sorted: &[Duration]) -> String {
    let Some(last) = sorted.last() else { return "–".into() };
    let at = |share: f64| {
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    };
    format!("{} / {} / {}", ms(at(0.5)), ms(at(0.99)), ms(*last))
}

fn ms(duration: Duration) -> String {
    format!("{:.0}", duration.as_secs_f64() * 1e3)
}

impl Report {
    fn complaints(&self) -> String {
        let mut told = String::new();
        for phase in &self.phases {
            for sentence in &phase.broken {
                let _infallible = writeln!(told, "- {}: {sentence}", phase.name);
            }
            for round in phase.rounds.iter().filter(|round| !round.is_sound()) {
                round_complaints(&mut told, &phase.name, round);
            }
            if !phase.all_counted() {
                let _infallible = writeln!(told, "- {}: some faults found no occasion", phase.name);
            }
        }
        let lines: Vec<&str> = told.lines().collect();
        let more = lines.len().saturating_sub(TOLD_MAX);
        let mut told = lines[..lines.len() - more].join("\n");
        if more > 0 {
            let _infallible = write!(told, "\n- and {more} lines more");
        }
        told + "\n\n"
    }
}

fn round_complaints(told: &mut String, phase: &str, round: &Round) {
    let what = round.strike.as_ref().map_or("no fault".into(), ToString::to_string);
    let place = format!("{phase}, {what} ({})", round.victims);
    for error in &round.errors {
        let _infallible = writeln!(told, "- {place}: {error}");
    }
    if round.held.blocks + round.held.leases > 0.0 {
        let (blocks, leases) = (round.held.blocks, round.held.leases);
        let _infallible =
            writeln!(told, "- {place}: {blocks} blocks and {leases} leases held at rest");
    }
    for outcome in &round.outcomes {
        let (kind, reason) = match &outcome.verdict {
            Verdict::Same => continue,
            Verdict::Wrong(reason) => ("wrong", reason),
            Verdict::Failed(reason) => ("failed", reason),
        };
        let _infallible = writeln!(
            told,
            "- {place}: {} ({}) {kind}, {}: {reason}",
            outcome.request_id,
            outcome.question,
            times(round, outcome)
        );
    }
}

/// When a request was sent and ended, in seconds from the strike.
fn times(round: &Round, outcome: &Outcome) -> String {
    let Some(struck_at) = round.struck_at else { return "without a fault".into() };
    let since = |at: tokio::time::Instant| {
        at.saturating_duration_since(struck_at).as_secs_f64()
            - struck_at.saturating_duration_since(at).as_secs_f64()
    };
    format!("sent at {:+.2} s, ended at {:+.2} s", since(outcome.began), since(outcome.ended))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::cluster::Held;

    fn outcome(verdict: Verdict) -> Outcome {
        let now = Instant::now();
        Outcome {
            request_id: "mock-1-7".into(),
            question: "greedy-4".into(),
            verdict,
            began: now - Duration::from_millis(1500),
            ended: now + Duration::from_millis(500),
            first_token_after: Some(Duration::from_millis(9)),
            longest_stall: Duration::from_millis(30),
        }
    }

    fn sound() -> Round {
        Round {
            strike: None,
            victims: "decode-worker-1".into(),
            struck_at: Some(Instant::now()),
            past_first_token: 4,
            outcomes: vec![outcome(Verdict::Same)],
            notes: Vec::new(),
            held: Held::default(),
            errors: Vec::new(),
        }
    }

    fn report(rounds: Vec<Round>, broken: Vec<String>) -> Report {
        let phase =
            PhaseReport { name: "mock".into(), streams: 8, rounds, memory: Vec::new(), broken };
        Report { phases: vec![phase], ..Report::new(7, "logs".into()) }
    }

    #[test]
    fn whatever_is_wrong_is_told() {
        #[track_caller]
        fn check(rounds: Vec<Round>, broken: &[&str], part: Option<&str>) {
            let report = report(rounds, broken.iter().map(|text| text.to_string()).collect());
            assert_eq!(report.is_clean(), part.is_none(), "{report}");
            let text = report.to_string();
            assert!(text.contains(part.unwrap_or("All as it must be")), "{text}");
        }
        let with = |verdict| Round { outcomes: vec![outcome(verdict)], ..sound() };
        let held = |blocks, leases| Round { held: Held { blocks, leases }, ..sound() };
        check(vec![sound(), sound()], &[], None);
        check(vec![with(Verdict::Failed("cut".into()))], &[], Some("mock-1-7 (greedy-4) failed"));
        check(
            vec![sound(), with(Verdict::Wrong("byte 3".into()))],
            &[],
            Some("wrong, sent at -1.5"),
        );
        check(vec![held(2.0, 0.0)], &[], Some("2 blocks and 0 leases"));
        check(vec![held(0.0, 1.0)], &[], Some("0 blocks and 1 leases"));
        check(vec![Round { errors: vec!["panicked".into()], ..sound() }], &[], Some("panicked"));
        check(vec![Round { struck_at: None, ..sound() }], &[], Some("no occasion"));
        check(vec![sound()], &["round 3: not ready"], Some("not ready"));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        #[track_caller]
        fn check(ms: &[u64], expected: &str) {
            let sorted: Vec<_> = ms.iter().copied().map(Duration::from_millis).collect();
            assert_eq!(percentiles(&sorted), expected);
        }
        check(&[], "–");
        check(&[7], "7 / 7 / 7");
        check(&[1, 2, 3, 4], "2 / 4 / 4");
        check(&(1..=200).collect::<Vec<_>>(), "100 / 198 / 200");
    }
}
