//! Learns coefficients from observations: least squares of the relative error, with non-negative
//! coefficients, and with less weight for what fits badly (Huber 1964): something that took long because
//! the system did something else teaches little. Observations of every size are remembered alike, so
//! that a long time of small ones does not unlearn large ones; and the older a memory, the less it counts.

use std::collections::{BTreeMap, VecDeque};

/// Observations remembered of one size, sizes being powers of two.
const SAMPLES_PER_SIZE: usize = 4;

/// Sizes remembered; beyond, the one not seen for longest is forgotten.
const SIZES_MAX: usize = 64;

/// After so many observations a memory counts half; in the end it counts this much.
const HALF_LIFE: f32 = 128.0;
const OLD_WEIGHT: f32 = 1.0 / 32.0;

/// An observation counts in full while its relative error is below this many typical ones.
const HUBER_ERRORS: f32 = 1.5;
const HUBER_ROUNDS: usize = 4;

/// Observations between two fits at most; at first each is followed by one.
const REFIT_MAX: u64 = 256;

/// While few kinds of things were seen, several coefficients could explain them. This says how
/// reluctantly each takes its share.
const RELUCTANCE: [f32; 5] = [1.0, 0.1, 10.0, 1.0, 10.0];
const RELUCTANCE_WEIGHT: f32 = 1e-4;

/// What a time depends on; those that are not used are 0. The first one is a constant's.
pub type Features = [f32; 5];

/// See the module's description.
#[derive(Default)]
pub struct Regression {
    sizes: BTreeMap<[u32; 3], Size>,
    observations: u64,
    fitted_at: u64,
    coefficients: Features,
}

/// Observations of one size.
#[derive(Default)]
struct Size {
    samples: VecDeque<Sample>,
    last: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    features: Features,
    took_us: f32,
    number: u64,
}

impl Regression {
    /// Takes one observation into account, remembered among those of about its `size`.
    pub fn record(&mut self, features: Features, size: [f32; 3], took_us: f32) {
        self.observations += 1;
        let key = size.map(|n| (n as u32).saturating_add(1).ilog2());
        if self.sizes.len() >= SIZES_MAX && !self.sizes.contains_key(&key) {
            self.forget_oldest();
        }
        let size = self.sizes.entry(key).or_default();
        if size.samples.len() >= SAMPLES_PER_SIZE {
            size.samples.pop_front();
        }
        // A clock that is too coarse says 0: that is still a time.
        let took_us = took_us.max(0.1);
        size.samples.push_back(Sample { features, took_us, number: self.observations });
        size.last = self.observations;
    }

    fn forget_oldest(&mut self) {
        let oldest = self.sizes.iter().min_by_key(|(_, size)| size.last);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.sizes.remove(&key);
        }
    }

    /// How many there were.
    pub fn observations(&self) -> u64 {
        self.observations
    }

    /// What was last learned; zeros before that.
    pub fn coefficients(&self) -> Features {
        self.coefficients
    }

    /// What was learned, with the latest where it is time to; nothing before the first observation.
    pub fn learn(&mut self) -> Option<Features> {
        let due = self.fitted_at + (self.fitted_at / 8).clamp(1, REFIT_MAX);
        if self.observations >= due {
            self.fit();
            self.fitted_at = self.observations;
        }
        (self.fitted_at > 0).then_some(self.coefficients)
    }

    fn fit(&mut self) {
        let samples: Vec<Sample> =
            self.sizes.values().flat_map(|size| size.samples.iter().copied()).collect();
        let age_weight = |sample: &Sample| {
            let age = (self.observations - sample.number) as f32;
            (-age / HALF_LIFE).exp2().max(OLD_WEIGHT)
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

    #[test]
    fn memory_is_bounded() {
        let mut regression = Regression::default();
        for exponent in 0..4_000 {
            let (tokens, attended) =
                ((exponent % 97) as f32 * 31.0, (exponent % 61) as f32 * 1000.0);
            regression.record([1.0, tokens, 0.0, 0.0, attended], [tokens, 0.0, attended], 5.0);
            regression.learn();
        }
        let samples: usize = regression.sizes.values().map(|size| size.samples.len()).sum();
        assert!(samples <= SIZES_MAX * SAMPLES_PER_SIZE);
    }
}
