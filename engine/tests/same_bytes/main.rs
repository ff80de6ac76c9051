//! A request's tokens and logprobs are, bit for bit, those of the request alone: whatever its
//! company, arrival, chunks, cache hits, preemptions and threads, and wherever its prompt is
//! computed. Random scenarios on each kernel path of this CPU.
//!
//! `STATOR_SCENARIOS=n` runs that many, `STATOR_SEED=n` begins at that seed (and runs one), and
//! `STATOR_TEST_KERNEL_PATH=portable|avx512-bf16|amx-bf16` tests one path alone, which must be
//! there.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod bench;
#[cfg(feature = "candle")]
mod candle;
mod coverage;
mod cuda;
mod handoff;
mod run;
mod scenario;

use std::io::Write;

use engine::{Defect, KernelPath};

use bench::Bench;
use coverage::Coverage;
use run::{Mismatch, run_scenario};
use scenario::Scenario;

/// On each kernel path.
const SCENARIOS: u64 = 100;
/// How many scenarios may pass before a defect is found.
const SCENARIOS_WITH_DEFECT: u64 = 30;

/// A window in every layer, biases, f16, f32, bf16 and 8 bits beside each other.
const FIXTURES: [&str; 6] = [
    "qwen3-tied",
    "qwen2-bias",
    "mistral-window",
    "llama2",
    "qwen3-biased-windows",
    "qwen2-bias in int8",
];
/// Paths have kernels of their own for bf16 and for quantised weights.
const WITH_PATHS: [&str; 3] = ["qwen2-bias", "qwen3-biased-windows", "qwen2-bias in int8"];
/// GGUF files with their matrices in a type.
const QUANTISED: [&str; 5] = [
    "llama3-tied in Q8_0",
    "qwen2-bias in Q4_0",
    "qwen3-tied in Q5_0",
    "demo in Q4_K",
    "demo in Q6_K",
];

#[test]
fn every_request_is_as_if_alone() {
    let first = number("STATOR_SEED");
    let count = number("STATOR_SCENARIOS").unwrap_or(if first.is_some() { 1 } else { SCENARIOS });
    let seeds = first.unwrap_or(0)..first.unwrap_or(0) + count;
    for path in paths() {
        let mut coverage = Coverage::default();
        for seed in seeds.clone() {
            let _how_to_repeat = HowToRepeat { path, seed };
            if let Err(Mismatch { request, problem }) = run(path, seed, None, &mut coverage) {
                panic!("request {request}: {problem}");
            }
        }
        println!("{path}: {coverage:?}");
        if count >= SCENARIOS {
            coverage.assert_enough(count);
        }
    }
}

/// Says how to run a scenario again when anything in it panics, also inside the engine.
struct HowToRepeat {
    path: KernelPath,
    seed: u64,
}

impl Drop for HowToRepeat {
    fn drop(&mut self) {
        let Self { path, seed } = self;
        if std::thread::panicking() {
            eprintln!(
                "again: STATOR_TEST_KERNEL_PATH={path} STATOR_SEED={seed} \
                 cargo test -p engine --test same_bytes"
            );
        }
    }
}

/// Otherwise the test above would prove nothing.
#[test]
fn a_wrong_reduction_order_is_noticed() {
    for path in paths() {
        let defect = Some(Defect::ReductionDependsOnBatch);
        let noticed = (0..SCENARIOS_WITH_DEFECT)
            .any(|seed| run(path, seed, defect, &mut Coverage::default()).is_err());
        assert!(noticed, "{path}");
    }
}

fn run(
    path: KernelPath,
    seed: u64,
    defect: Option<Defect>,
    coverage: &mut Coverage,
) -> Result<(), Mismatch> {
    let plain = if path == KernelPath::Portable { &FIXTURES[..] } else { &WITH_PATHS[..] };
    let fixtures: Vec<&str> = plain.iter().chain(&QUANTISED).copied().collect();
    run_on(&Bench::new(fixtures[seed as usize % fixtures.len()], path, defect), seed, coverage)
}

fn run_on(bench: &Bench, seed: u64, coverage: &mut Coverage) -> Result<(), Mismatch> {
    run_scenario(bench, &Scenario::new(seed, bench.vocabulary_size(), &bench.grammars), coverage)
}

/// So many scenarios, or as many as asked for, by these in turn.
fn check_all(benches: &[Bench], scenarios: u64) {
    let mut coverage = Coverage::default();
    for seed in 0..number("STATOR_SCENARIOS").unwrap_or(scenarios) {
        let bench = &benches[seed as usize % benches.len()];
        if let Err(Mismatch { request, problem }) = run_on(bench, seed, &mut coverage) {
            panic!("seed {seed}, request {request}: {problem}");
        }
    }
    println!("{coverage:?}");
}

/// Whether one of so many scenarios shows that sums depend on the batch.
fn is_noticed(benches: &[Bench], scenarios: u64) -> bool {
    (0..scenarios).any(|seed| {
        let bench = &benches[seed as usize % benches.len()];
        run_on(bench, seed, &mut Coverage::default()).is_err()
    })
}

/// The kernel paths to test. Those that this CPU lacks are named past the capture of output: a
/// path that nobody tests must not go unnoticed.
fn paths() -> Vec<KernelPath> {
    let Ok(wanted) = std::env::var("STATOR_TEST_KERNEL_PATH") else {
        let (available, others): (Vec<_>, Vec<_>) =
            KernelPath::ALL.into_iter().partition(|path| path.is_available());
        for path in others {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "this CPU has no {path} kernels: not tested").unwrap();
        }
        return available;
    };
    let path = KernelPath::ALL.into_iter().find(|path| path.to_string() == wanted);
    let path = path.unwrap_or_else(|| panic!("STATOR_TEST_KERNEL_PATH: no path is {wanted}"));
    assert!(path.is_available(), "STATOR_TEST_KERNEL_PATH: this CPU has no {path} kernels");
    vec![path]
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}: {value} is not a number")))
}
