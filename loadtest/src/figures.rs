//! Percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// An hour: longer times count as this.
const MICROSECONDS_MAX: u64 = 3_600_000_000;

/// Times in microseconds, with three significant digits.
pub type Times = Histogram<u64>;

/// An empty histogram.
pub fn times() -> Times {
    Histogram::new_with_bounds(1, MICROSECONDS_MAX, 3).expect("bounds and digits are valid")
}

/// Counts a time.
pub fn record(times: &mut Times, time: Duration) {
    times.saturating_record(time.as_micros() as u64);
}

/// What is reported of a distribution, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// How many times were measured.
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Figures {
    /// `None` if nothing was measured.
    pub fn of(times: &Times) -> Option<Self> {
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
        (!times.is_empty()).then(|| Self {
            count: times.len(),
            mean: times.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: times.max() as f64 / 1000.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_times() {
        #[track_caller]
        fn check(all_us: impl Iterator<Item = u64>, expected: [f64; 6]) {
            let mut times = times();
            all_us.for_each(|us| record(&mut times, Duration::from_micros(us)));
            let got = Figures::of(&times).unwrap();
            assert_eq!([got.p50, got.p90, got.p95, got.p99, got.p99_9, got.max], expected);
        }
        // Up to 2,047 every value has a bucket of its own.
        check(1..=1000, [0.5, 0.9, 0.95, 0.99, 0.999, 1.0]);
        check([7].into_iter(), [0.007; 6]);
        check((0..100).map(|i| if i < 99 { 10 } else { 2000 }), [0.01, 0.01, 0.01, 0.01, 2.0, 2.0]);
        check([0, 0].into_iter(), [0.0; 6]);
    }

    #[test]
    fn nothing_has_no_percentiles() {
        assert_eq!(Figures::of(&times()), None);
    }

    #[test]
    fn long_times_keep_three_digits() {
        let mut times = times();
        for s in [1, 10, 100, 100_000] {
            record(&mut times, Duration::from_secs(s));
        }
        let got = Figures::of(&times).unwrap();
        assert!((got.p50 / 10_000.0 - 1.0).abs() < 0.001, "{got:?}");
        assert!((got.max / 3_600_000.0 - 1.0).abs() < 0.001, "{got:?}");
    }
}
