//! Learns how long this worker's steps take (`protocol::v1::LatencyModel`) from the steps it makes.

use engine::StepOutput;
use protocol::StepShape;
use protocol::v1::LatencyModel;

use crate::regression::Regression;

/// See the module's description.
#[derive(Default)]
pub struct LatencyLearner {
    steps: Regression,
    prefill_steps: u64,
}

impl LatencyLearner {
    /// Takes one step into account.
    pub fn record(&mut self, output: &StepOutput) {
        if !output.is_idle() {
            self.record_step(&output.shape(), output.took.as_secs_f32() * 1e6);
        }
    }

    fn record_step(&mut self, shape: &StepShape, took_us: f32) {
        self.prefill_steps += u64::from(shape.prefill_tokens > 0.0);
        let attended = (shape.prefill_attended + shape.attended)
            / (shape.prefill_tokens + shape.sequences).max(1.0);
        let size = [shape.prefill_tokens, shape.sequences, attended];
        self.steps.record(shape.features(), size, took_us);
    }

    /// How long a step takes by what was last learned, in microseconds; 0 before that.
    pub fn predict_step_us(&self, shape: &StepShape) -> f32 {
        LatencyModel::from_coefficients(self.steps.coefficients()).predict_step_us(shape)
    }

    /// What was learned; nothing before the first step.
    pub fn model(&mut self) -> Option<LatencyModel> {
        let coefficients = self.steps.learn()?;
        Some(LatencyModel {
            prefill_steps: self.prefill_steps,
            decode_steps: self.steps.observations() - self.prefill_steps,
            ..LatencyModel::from_coefficients(coefficients)
        })
    }
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
}
