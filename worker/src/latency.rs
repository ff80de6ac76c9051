//! Learns how long this worker's steps take (`protocol::v1::LatencyModel`) from the steps it makes.
//!
//! Least squares of the relative error over remembered steps, with non-negative coefficients, and
//! with less weight for steps that fit badly (Huber 1964): a step during which the system did
//! something else teaches little. Steps of every size are remembered alike, so that a long time of
//! small steps does not unlearn large ones; and the older a memory, the less it counts.

use std::collections::{BTreeMap, VecDeque};

use engine::StepOutput;
use protocol::StepShape;
use protocol::v1::LatencyModel;

/// Steps remembered of one size, sizes being powers of two.
const SAMPLES_PER_SIZE: usize = 4;

/// Sizes remembered; beyond, the one not seen for longest is forgotten.
const SIZES_MAX: usize = 64;

/// After so many steps a memory counts half; in the end it counts this much.
const HALF_LIFE_STEPS: f32 = 128.0;
const OLD_WEIGHT: f32 = 1.0 / 32.0;

/// A step counts in full while its relative error is below this many typical ones.
const HUBER_ERRORS: f32 = 1.5;
const HUBER_ROUNDS: usize = 4;

/// Steps between two fits at most; at first each step is followed by one.
const REFIT_STEPS_MAX: u64 = 256;

/// While few kinds of steps were seen, several coefficients could explain them. This says how
/// reluctantly each takes its share (in the order of `LatencyModel`).
const RELUCTANCE: [f32; 5] = [1.0, 0.1, 10.0, 1.0, 10.0];
const RELUCTANCE_WEIGHT: f32 = 1e-4;

/// See the module's description.
#[derive(Default)]
pub struct LatencyLearner {
    sizes: BTreeMap<[u32; 3], Size>,
    steps: u64,
    prefill_steps: u64,
    fitted_at: u64,
    coefficients: [f32; 5],
}

/// Steps of one size.
#[derive(Default)]
struct Size {
    samples: VecDeque<Sample>,
    last_step: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    features: [f32; 5],
    took_us: f32,
    step: u64,
}

impl LatencyLearner {
    /// Takes one step into account.
    pub fn record(&mut self, output: &StepOutput) {
        if !output.is_idle() {
            self.record_step(&output.shape(), output.took.as_secs_f32() * 1e6);
        }
    }

    fn record_step(&mut self, shape: &StepShape, took_us: f32) {
        self.steps += 1;
        self.prefill_steps += u64::from(shape.prefill_tokens > 0.0);
        let attended = (shape.prefill_attended + shape.attended)
            / (shape.prefill_tokens + shape.sequences).max(1.0);
        let key = [shape.prefill_tokens, shape.sequences, attended].map(|n| (n as u32 + 1).ilog2());
        if self.sizes.len() >= SIZES_MAX && !self.sizes.contains_key(&key) {
            self.forget_oldest();
        }
        let size = self.sizes.entry(key).or_default();
        if size.samples.len() >= SAMPLES_PER_SIZE {
            size.samples.pop_front();
        }
        // A clock that is too coarse says 0: that is still a time.
        let took_us = took_us.max(0.1);
        size.samples.push_back(Sample { features: shape.features(), took_us, step: self.steps });
        size.last_step = self.steps;
    }

    fn forget_oldest(&mut self) {
        let oldest = self.sizes.iter().min_by_key(|(_, size)| size.last_step);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.sizes.remove(&key);
        }
    }

    /// How long a step takes by what was last learned, in microseconds; 0 before that.
    pub fn predict_step_us(&self, shape: &StepShape) -> f32 {
        LatencyModel::from_coefficients(self.coefficients).predict_step_us(shape)
    }

    /// What was learned; nothing before the first step.
    pub fn model(&mut self) -> Option<LatencyModel> {
        let due = self.fitted_at + (self.fitted_at / 8).clamp(1, REFIT_STEPS_MAX);
        if self.steps >= due {
            self.fit();
            self.fitted_at = self.steps;
        }
        (self.fitted_at > 0).then(|| LatencyModel {
            prefill_steps: self.prefill_steps,
            decode_steps: self.steps - self.prefill_steps,
            ..LatencyModel::from_coefficients(self.coefficients)
        })
    }

    fn fit(&mut self) {
        let samples: Vec<Sample> =
            self.sizes.values().flat_map(|size| size.samples.iter().copied()).collect();
        let age_weight = |sample: &Sample| {
            let age = (self.steps - sample.step) as f32;
            (-age / HALF_LIFE_STEPS).exp2().max(OLD_WEIGHT)
        };
        let ages: Vec<f32> = samples.iter().map(age_weight).collect();
        let mut weights = ages.clone();
        for _ in 0..HUBER_ROUNDS {
            self.coefficients = solve(&samples, &weights, self.coefficients);
            let errors: Vec<f32> =
                samples.iter().map(|sample| sample.error(&self.coefficients)).collect();
            let tolerated = HUBER_ERRORS * median(&errors, &ages).max(1e-3);
            for ((weight, age), error) in weights.iter_mut().zip(&ages).zip(&errors) {
                *weight = age * (tolerated / error).min(1.0);
            }
        }
    }
}

impl Sample {
    /// How far off a prediction is, in proportion to the larger of both.
    fn error(&self, coefficients: &[f32; 5]) -> f32 {
        let predicted: f32 = self.features.iter().zip(coefficients).map(|(f, c)| f * c).sum();
        (predicted - self.took_us).abs() / self.took_us.min(predicted.max(1e-3))
    }
}

/// Non-negative coefficients that minimise the weighted squares of relative errors. Where the best
/// has negative ones, the worst of these becomes zero and the others are solved for again.
fn solve(samples: &[Sample], weights: &[f32], before: [f32; 5]) -> [f32; 5] {
    // Each feature in units of its typical contribution, so that coefficients compare.
    let mut scales = [0.0f32; 5];
    for sample in samples {
        for (scale, feature) in scales.iter_mut().zip(sample.features) {
            *scale += feature / sample.took_us / samples.len() as f32;
        }
    }
    let (mut products, mut targets) = ([[0.0f64; 5]; 5], [0.0f64; 5]);
    for (sample, weight) in samples.iter().zip(weights) {
        let relative: [f64; 5] = std::array::from_fn(|j| match scales[j] {
            0.0 => 0.0,
            scale => f64::from(sample.features[j] / sample.took_us / scale),
        });
        for j in 0..5 {
            targets[j] += f64::from(*weight) * relative[j];
            for k in 0..5 {
                products[j][k] += f64::from(*weight) * relative[j] * relative[k];
            }
        }
    }
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    for j in 0..5 {
        products[j][j] += total * f64::from(RELUCTANCE_WEIGHT * RELUCTANCE[j]);
    }
    let mut is_free = scales.map(|scale| scale > 0.0);
    let shares = loop {
        let shares = solve_free(products, targets, is_free);
        let worst = (0..5).min_by(|j, k| shares[*j].total_cmp(&shares[*k])).expect("five");
        if shares[worst] >= 0.0 {
            break shares;
        }
        is_free[worst] = false;
    };
    // A coefficient that no remembered step speaks of stays what it was.
    std::array::from_fn(|j| match scales[j] {
        0.0 => before[j],
        scale => (shares[j] / f64::from(scale)) as f32,
    })
}

/// Solves a symmetric positive definite system in which all but the free unknowns are zero, by
/// Gaussian elimination.
fn solve_free(mut a: [[f64; 5]; 5], mut b: [f64; 5], is_free: [bool; 5]) -> [f64; 5] {
    for j in (0..5).filter(|j| !is_free[*j]) {
        a[j] = [0.0; 5];
        a.iter_mut().for_each(|row| row[j] = 0.0);
        (a[j][j], b[j]) = (1.0, 0.0);
    }
    for pivot in 0..5 {
        let (row, target) = (a[pivot], b[pivot]);
        for below in pivot + 1..5 {
            let factor = a[below][pivot] / row[pivot];
            a[below].iter_mut().zip(row).for_each(|(element, above)| *element -= factor * above);
            b[below] -= factor * target;
        }
    }
    let mut x = [0.0; 5];
    for j in (0..5).rev() {
        let known: f64 = (j + 1..5).map(|k| a[j][k] * x[k]).sum();
        x[j] = (b[j] - known) / a[j][j];
    }
    x
}

/// The value below which half of the weight lies.
fn median(values: &[f32], weights: &[f32]) -> f32 {
    let mut sorted: Vec<(f32, f32)> = values.iter().copied().zip(weights.iter().copied()).collect();
    sorted.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let half = weights.iter().sum::<f32>() / 2.0;
    let mut below = 0.0;
    let middle = sorted.iter().find(|(_, weight)| {
        below += weight;
        below >= half
    });
    middle.map_or(0.0, |(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers in 0..1.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 40) as f32 / (1 << 24) as f32
        }
    }

    fn prefill(tokens: f32, before: f32) -> StepShape {
        let prefill_attended = tokens * (before + (tokens + 1.0) / 2.0);
        StepShape { prefill_tokens: tokens, prefill_attended, ..Default::default() }
    }

    fn decode(sequences: f32, context: f32) -> StepShape {
        StepShape { sequences, attended: sequences * context, ..Default::default() }
    }

    const TRUTH: LatencyModel = LatencyModel {
        step_us: 300.0,
        prefill_token_us: 80.0,
        prefill_attended_us: 0.02,
        sequence_us: 60.0,
        attended_us: 0.05,
        prefill_steps: 0,
        decode_steps: 0,
    };

    /// A life of mixed steps: 10% noise, and some steps that took up to 30 times as long.
    fn teach(learner: &mut LatencyLearner, truth: &LatencyModel, steps: usize, seed: u64) {
        let mut numbers = Numbers(seed);
        for _ in 0..steps {
            let shape = match numbers.next() {
                kind if kind < 0.3 => {
                    prefill((1.0 + 511.0 * numbers.next()).floor(), 1000.0 * numbers.next())
                }
                _ => decode((1.0 + 15.0 * numbers.next()).floor(), 50.0 + 1000.0 * numbers.next()),
            };
            let mut took = truth.predict_step_us(&shape) * (0.95 + 0.1 * numbers.next());
            if numbers.next() < 0.05 {
                took *= 2.0 + 28.0 * numbers.next();
            }
            learner.record_step(&shape, took);
            learner.model();
        }
    }

    #[track_caller]
    fn check(learner: &mut LatencyLearner, truth: &LatencyModel, tolerated: f32) {
        let model = learner.model().unwrap();
        let shapes =
            [prefill(16.0, 0.0), prefill(512.0, 500.0), decode(1.0, 100.0), decode(16.0, 800.0)];
        for shape in shapes {
            let (predicted, expected) =
                (model.predict_step_us(&shape), truth.predict_step_us(&shape));
            let error = (predicted - expected).abs() / expected;
            assert!(error < tolerated, "{shape:?}: {predicted} instead of {expected}");
        }
    }

    #[test]
    fn learns_in_spite_of_noise_and_outliers() {
        for seed in 1..20 {
            let mut learner = LatencyLearner::default();
            teach(&mut learner, &TRUTH, 300, seed);
            check(&mut learner, &TRUTH, 0.12);
        }
    }

    #[test]
    fn follows_a_machine_that_becomes_slower() {
        let slower = LatencyModel::from_coefficients(TRUTH.coefficients().map(|c| 3.0 * c));
        for seed in 1..20 {
            let mut learner = LatencyLearner::default();
            teach(&mut learner, &TRUTH, 2000, seed);
            teach(&mut learner, &slower, 400, 100 + seed);
            check(&mut learner, &slower, 0.25);
        }
    }

    #[test]
    fn one_prompt_says_most_about_the_time_per_token() {
        let mut learner = LatencyLearner::default();
        assert_eq!(learner.model(), None);
        learner.record_step(&prefill(1000.0, 0.0), 100_000.0);
        let model = learner.model().unwrap();
        let tenth = model.predict_step_us(&prefill(100.0, 0.0));
        assert!((8_000.0..25_000.0).contains(&tenth), "{tenth}");
        assert_eq!((model.sequence_us, model.attended_us), (0.0, 0.0), "nothing said of decoding");
    }

    #[test]
    fn small_steps_do_not_unlearn_large_ones() {
        let mut learner = LatencyLearner::default();
        teach(&mut learner, &TRUTH, 300, 3);
        for _ in 0..5_000 {
            let shape = decode(1.0, 200.0);
            learner.record_step(&shape, TRUTH.predict_step_us(&shape));
            learner.model();
        }
        check(&mut learner, &TRUTH, 0.2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut learner = LatencyLearner::default();
        for exponent in 0..4_000 {
            let tokens = (exponent % 97) as f32 * 31.0;
            learner.record_step(&prefill(1.0 + tokens, (exponent % 61) as f32 * 1000.0), 5.0);
        }
        let samples: usize = learner.sizes.values().map(|size| size.samples.len()).sum();
        assert!(samples <= SIZES_MAX * SAMPLES_PER_SIZE);
    }
}
