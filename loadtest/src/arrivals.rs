//! When turns arrive in an open loop, drawn without looking at the server.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::args::Arrivals;

/// Times of arrival since the beginning, ascending, without end.
pub struct ArrivalTimes {
    kind: Arrivals,
    rate_per_s: f64,
    random: ChaCha8Rng,
    arrivals: u64,
    last_s: f64,
}

impl ArrivalTimes {
    /// `rate_per_s` is finite and above 0.
    pub fn new(kind: Arrivals, rate_per_s: f64, random: ChaCha8Rng) -> Self {
        Self { kind, rate_per_s, random, arrivals: 0, last_s: 0.0 }
    }
}

impl Iterator for ArrivalTimes {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at_s = match self.kind {
            // Multiplied and not summed up, so that rounding does not add up.
            Arrivals::Constant => self.arrivals as f64 / self.rate_per_s,
            // Gaps are exponential, by inversion; 1 - u is never 0.
            Arrivals::Poisson => {
                self.last_s - (1.0 - self.random.random::<f64>()).ln() / self.rate_per_s
            }
        };
        self.arrivals += 1;
        self.last_s = at_s;
        Duration::try_from_secs_f64(at_s).ok()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn times(kind: Arrivals, rate_per_s: f64, seed: u64) -> ArrivalTimes {
        ArrivalTimes::new(kind, rate_per_s, ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        let got: Vec<_> = times(Arrivals::Constant, 4.0, 0).take(4).collect();
        assert_eq!(got, [0, 250, 500, 750].map(Duration::from_millis));
        let late = times(Arrivals::Constant, 3.0, 0).nth(3_000_000);
        assert_eq!(late, Some(Duration::from_secs(1_000_000)));
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_variance_of_an_exponential() {
        let all: Vec<f64> =
            times(Arrivals::Poisson, 50.0, 1).take(100_000).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = all.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = |gap: &f64| (gap - mean) * (gap - mean);
        let variance = gaps.iter().map(square).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.01, "{mean}");
        assert!((variance * 2500.0 - 1.0).abs() < 0.03, "{variance}");
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
    }

    #[test]
    fn a_seed_decides_arrivals() {
        let first = |seed| times(Arrivals::Poisson, 7.0, seed).take(100).collect::<Vec<_>>();
        assert_eq!(first(3), first(3));
        assert_ne!(first(3), first(4));
    }
}
