//! Tokens are chosen as the engine's sampler chooses them.

use cuda_kernels::{
    CANDIDATES_MAX, Dtype, KernelShape, Module, NOT_DECIDED, RowSampling, Sample, sampling_bytes,
};
use engine::kernels::exp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::emulator::{SHAPE, Work, rounded, run, run_everywhere};

const GREEDY: RowSampling =
    RowSampling { random: 0.0, temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0 };

fn choose(shape: &KernelShape, logits: &[f32], rows: &[RowSampling], is_watched: bool) -> Vec<u32> {
    let mut work = Work::default();
    let sample = Sample {
        rows: rows.len(),
        vocabulary: logits.len() / rows.len(),
        chosen: work.room(4 * rows.len()),
        logits: work.numbers(logits, shape.activations),
        samplings: work.bytes(sampling_bytes(rows)),
    };
    work.launches = sample.launches().unwrap().to_vec();
    let run = if is_watched { run_everywhere } else { run };
    run(Module::Sampling, shape, &work).integers(sample.chosen)
}

#[test]
fn greedy_takes_the_largest_and_the_lower_id() {
    let minus = f32::NEG_INFINITY;
    let check = |logits: &[f32], expected: u32| {
        assert_eq!(choose(&SHAPE, logits, &[GREEDY], false), [expected], "{logits:?}");
    };
    check(&[1.0, 3.0, 2.0, 3.0], 1);
    check(&[-1.0, -3.0, f32::NAN, -0.5], 3);
    check(&[minus, minus, 1.0], 2);
    check(&[-5.0, -0.0, 0.0], 1);
    check(&[f32::NAN, f32::NAN], 0);
    check(&[minus, f32::INFINITY, 4.0], 1);
    let mut many = vec![0.5; 5000];
    many[4321] = 0.75;
    many[4999] = 0.75;
    check(&many, 4321);
}

/// What the engine's sampler takes of these logits.
fn engine_choice(logits: &[f32], sampling: &RowSampling) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| {
        let x = (logit - max) / sampling.temperature;
        if x.is_nan() { 0.0 } else { exp(x) }
    };
    let weights: Vec<f32> = logits.iter().map(weight).collect();
    let wide = |id: &u32| f64::from(weights[*id as usize]);
    let is_likely = |id: &u32| weights[*id as usize] >= sampling.min_p;
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(is_likely).collect();
    let rank = |ids: &mut Vec<u32>| {
        ids.sort_by(|a, b| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b)));
    };
    if sampling.top_k > 0 {
        rank(&mut ids);
        ids.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let enough = f64::from(sampling.top_p) * ids.iter().map(wide).sum::<f64>();
        rank(&mut ids);
        let mut cumulative = 0.0;
        let last = ids.iter().position(|id| {
            cumulative += wide(id);
            cumulative >= enough
        });
        ids.truncate(last.map_or(ids.len(), |last| last + 1));
    }
    let target = sampling.random * ids.iter().map(wide).sum::<f64>();
    let mut cumulative = 0.0;
    let chosen = ids.iter().find(|id| {
        cumulative += wide(id);
        target < cumulative
    });
    *chosen.expect("a candidate")
}

/// Logits of one vocabulary, steep or flat, with equal ones, for each of some rows.
fn logits(vocabulary: usize, rows: usize, spread: f32, dtype: Dtype) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(vocabulary as u64);
    let number = |rng: &mut StdRng| match rng.random_range(0..10) {
        0 => -3.0,
        1 => f32::NEG_INFINITY,
        _ => rng.random_range(-spread..spread),
    };
    rounded(&(0..rows * vocabulary).map(|_| number(&mut rng)).collect::<Vec<_>>(), dtype)
}

fn samplings(count: usize, seed: u64) -> Vec<RowSampling> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pick = |choices: &[f32]| choices[rng.random_range(0..choices.len())];
    let mut sampling = || RowSampling {
        random: 0.0,
        temperature: pick(&[0.3, 0.7, 1.0, 1.5]),
        top_p: pick(&[1.0, 1.0, 0.0, 0.5, 0.9, 0.99]),
        min_p: pick(&[0.0, 0.0, 0.0, 0.05, 0.5]),
        top_k: pick(&[0.0, 0.0, 1.0, 5.0, 50.0, 1000.0]) as u32,
    };
    let rows: Vec<RowSampling> = (0..count).map(|_| sampling()).collect();
    let random = |row| RowSampling { random: rng.random_range(0.0..1.0), ..row };
    rows.into_iter().map(random).collect()
}

#[track_caller]
fn check(vocabulary: usize, spread: f32, dtype: Dtype, rows: usize, is_watched: bool) {
    let shape = KernelShape { activations: dtype, ..SHAPE };
    let logits = logits(vocabulary, rows, spread, dtype);
    let samplings = samplings(rows, vocabulary as u64);
    let chosen = choose(&shape, &logits, &samplings, is_watched);
    let of_rows = logits.chunks_exact(vocabulary).zip(&samplings);
    for (row, ((logits, sampling), chosen)) in of_rows.zip(&chosen).enumerate() {
        assert_eq!(*chosen, engine_choice(logits, sampling), "row {row}: {sampling:?}");
    }
    let alone = choose(&shape, &logits[..vocabulary], &samplings[..1], false);
    assert_eq!(alone, chosen[..1], "a row alone");
}

#[test]
fn draws_are_the_engines() {
    check(50, 4.0, Dtype::F32, 24, false);
    check(1000, 8.0, Dtype::F32, 16, false);
    check(3001, 10.0, Dtype::Bf16, 12, false);
    check(5000, 8.0, Dtype::F16, 8, false);
}

#[test]
fn draws_have_no_race() {
    check(1500, 6.0, Dtype::F32, 2, true);
}

#[test]
fn a_row_that_needs_more_candidates_is_not_decided() {
    let vocabulary = 4 * CANDIDATES_MAX;
    let flat = vec![0.0; vocabulary];
    let row = RowSampling { random: 0.3, temperature: 1.0, ..GREEDY };
    let rows = |top_p, top_k| RowSampling { top_p, top_k, ..row };
    let check = |sampling: RowSampling, expected: u32| {
        assert_eq!(choose(&SHAPE, &flat, &[sampling], false), [expected], "{sampling:?}");
    };
    check(rows(0.5, 0), NOT_DECIDED);
    check(rows(1.0, CANDIDATES_MAX as u32 + 1), NOT_DECIDED);
    // Equal weights: the lowest ids.
    check(rows(1.0, 1000), 300);
    check(rows(0.125, 0), 153);
    check(rows(1.0, 0), (0.3 * vocabulary as f64) as u32);
}
