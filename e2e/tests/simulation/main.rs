//! Whole systems under a simulated clock, in which messages are late, lost and out of order,
//! connections break and workers die: each request ends exactly once, its text is the one of a
//! worker alone, nothing is left behind, and the router knows what the workers' caches hold.
//!
//! Everything follows from a seed. `STATOR_SIMULATION_SEED=n` replays one and says what happens;
//! `STATOR_SIMULATION_SEEDS=n` runs so many.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod client;
mod cluster;
mod model;
mod plan;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use client::Outcome;
use cluster::Cluster;
use plan::{Disturbance, Plan};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use world::{Defect, World};

/// Seeds of one run where nothing else is said.
const SEEDS: u64 = 1000;

/// Runs that share this machine.
const THREADS: usize = 2;

/// What became of one seed's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Summary {
    finished: usize,
    failed: usize,
    hung_up: usize,
    /// In the order of the plan: text, and when it ended.
    ends: Vec<(String, std::time::Duration)>,
}

/// Runs one seed. Errors: what was wrong.
fn simulate(seed: u64, defect: Defect) -> Result<Summary, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(live(&Plan::from_seed(seed), defect))
}

async fn live(plan: &Plan, defect: Defect) -> Result<Summary, String> {
    let world = World::new(plan.seed, plan.weather, defect);
    let mut cluster = Cluster::start(plan, &world).await;
    world.storm();
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for (index, request) in plan.requests.iter().cloned().enumerate() {
        let app = cluster.app.clone();
        clients.spawn(async move {
            sleep_until(began + request.at).await;
            (index, client::run(app, &request, began).await)
        });
    }
    for disturbance in &plan.disturbances {
        sleep_until(began + disturbance.at()).await;
        match disturbance {
            Disturbance::Cut { worker, .. } => cluster.cut(*worker),
            Disturbance::Kill { worker, .. } => cluster.kill(*worker),
            Disturbance::Restart { worker, .. } => cluster.restart(*worker),
        }
    }
    let mut results: Vec<Option<client::Run>> = plan.requests.iter().map(|_| None).collect();
    while let Some(joined) = clients.join_next().await {
        let (index, run) = joined.map_err(|error| format!("a client panicked: {error}"))?;
        results[index] = Some(run);
    }
    world.calm();
    let mut summary = Summary::default();
    for ((index, request), run) in plan.requests.iter().enumerate().zip(results) {
        let run = run.expect("each client has ended");
        let expected = cluster.oracle.text_of(request);
        let excuses = plan.excuses(&run);
        check(request, &run, &expected, excuses).map_err(|e| format!("request {index}: {e}"))?;
        summary.add(&run);
    }
    cluster.check_rest().await?;
    Ok(summary)
}

/// Whether a request ended as it had to. One may fail only where there is an excuse.
fn check(
    request: &plan::Request,
    run: &client::Run,
    expected: &str,
    is_excused: bool,
) -> Result<(), String> {
    match &run.outcome {
        Outcome::Finished(text) if text == expected => Ok(()),
        Outcome::Finished(text) => Err(format!("'{text}' instead of '{expected}'")),
        Outcome::HungUp(text) if expected.starts_with(text) => Ok(()),
        Outcome::Failed(text) if !expected.starts_with(text) => {
            Err(format!("'{text}' is not the beginning of '{expected}'"))
        }
        Outcome::Failed(_) if is_excused => Ok(()),
        other => Err(format!("{other:?} at {:?}, asked {request:?}", run.ended)),
    }
}

impl Summary {
    fn add(&mut self, run: &client::Run) {
        let (count, text) = match &run.outcome {
            Outcome::Finished(text) => (&mut self.finished, text),
            Outcome::Failed(text) => (&mut self.failed, text),
            Outcome::HungUp(text) | Outcome::Broken(text) => (&mut self.hung_up, text),
        };
        *count += 1;
        self.ends.push((text.clone(), run.ended));
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not '{text}'")))
}

#[test]
fn whatever_breaks_each_request_ends_once_with_its_text() {
    if let Some(seed) = number_from_environment("STATOR_SIMULATION_SEED") {
        tracing_subscriber::fmt().with_env_filter("debug,h2=info,hyper=info,tower=info").init();
        println!("{:#?}", Plan::from_seed(seed));
        println!("{:#?}", simulate(seed, Defect::None).unwrap());
        return;
    }
    let seeds = number_from_environment("STATOR_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (next, total) = (AtomicU64::new(0), Mutex::new(Summary::default()));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed))
                    && seed < seeds
                {
                    match simulate(seed, Defect::None) {
                        Ok(summary) => {
                            let mut total = total.lock().unwrap();
                            total.finished += summary.finished;
                            total.failed += summary.failed;
                            total.hung_up += summary.hung_up;
                        }
                        Err(error) => failures.lock().unwrap().push((seed, error)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    for (seed, error) in &failures {
        println!("STATOR_SIMULATION_SEED={seed}: {error}");
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed", failures.len());
    let Summary { finished, failed, hung_up, .. } = total.into_inner().unwrap();
    println!("{seeds} seeds: {finished} requests finished, {failed} failed, {hung_up} hung up");
    assert!(finished > 5 * failed, "most requests are to be checked to their end");
}

#[test]
fn a_seed_replays() {
    for seed in 0..10 {
        let (first, second) = (simulate(seed, Defect::None), simulate(seed, Defect::None));
        assert_eq!(first, second, "seed {seed}");
    }
}

/// The checks must notice what they are there for.
#[track_caller]
fn check_that_some_seed_fails(defect: Defect, expected: &str) {
    let failed = (0..200).find_map(|seed| simulate(seed, defect).err());
    let error = failed.expect("a seed that fails");
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_wrong_byte_in_a_transfer_is_noticed() {
    check_that_some_seed_fails(Defect::WrongByte, "instead of");
}

#[test]
fn a_kv_event_that_is_lost_without_a_gap_is_noticed() {
    check_that_some_seed_fails(Defect::LostBlock, "the router's index");
}
