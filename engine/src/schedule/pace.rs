//! What is made of knowing how long steps take: how much of a prompt a step computes beside streams, so
//! that these do not stand still for long, and which guesses pay.

use protocol::StepShape;
use protocol::v1::LatencyModel;

/// Prompts get so many tokens of a step at least, however long that takes: otherwise a machine that is
/// slower than its target would compute none. A step reads all weights, and the first tokens of a
/// prompt hide behind that.
const PROMPT_TOKENS_MIN: usize = 32;

/// What a step that streams wait for may take, and how long steps take here.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Microseconds.
    pub step_target_us: f32,
    /// As learned so far.
    pub latency: LatencyModel,
}

impl Pace {
    /// Prompt tokens, the first of them after `context_tokens` others, that a step has time for beside
    /// the streams of `shape`.
    pub fn prompt_tokens(&self, shape: &StepShape, context_tokens: usize) -> usize {
        let left_us = self.step_target_us - self.latency.predict_step_us(shape);
        let each_us = self.latency.prefill_token_us;
        let attended_us = self.latency.prefill_attended_us;
        // n tokens after c others attend to n * c + n * (n + 1) / 2.
        let linear = each_us + attended_us * (context_tokens as f32 + 0.5);
        let tokens = match attended_us {
            0.0 => left_us / linear,
            _ => {
                ((linear * linear + 2.0 * attended_us * left_us).max(0.0).sqrt() - linear)
                    / attended_us
            }
        };
        match tokens.is_nan() {
            true => usize::MAX,
            false => (tokens as usize).max(PROMPT_TOKENS_MIN),
        }
    }
}

/// Which share of what the streams of a step guess must come true to pay. A guess is another row, and
/// what rows take (beside the step's constant time, for which weights come from memory) is that share
/// of the step: each guess costs it, and one that comes true saves one stream's part of a step.
pub fn paying_share(latency: &LatencyModel, streams: &StepShape) -> f32 {
    let step_us = latency.predict_step_us(streams);
    let share = (step_us - latency.step_us) / step_us;
    // Nothing was learned yet.
    if share.is_nan() { 0.0 } else { share }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(coefficients: [f32; 5], target_us: f32, context_tokens: usize, expected: usize) {
        let latency = LatencyModel::from_coefficients(coefficients);
        let pace = Pace { step_target_us: target_us, latency };
        let streams = StepShape { sequences: 4.0, attended: 400.0, ..Default::default() };
        let tokens = pace.prompt_tokens(&streams, context_tokens);
        assert_eq!(tokens, expected);
        let took = |tokens: usize| {
            let (n, before) = (tokens as f32, context_tokens as f32);
            let prefill_attended = n * before + n * (n + 1.0) / 2.0;
            latency.predict_step_us(&StepShape { prefill_tokens: n, prefill_attended, ..streams })
        };
        if expected > PROMPT_TOKENS_MIN && expected < 1 << 20 {
            assert!(took(tokens - 1) <= target_us && took(tokens + 1) >= target_us, "{tokens}");
        }
    }

    #[test]
    fn a_step_takes_no_longer_than_its_target() {
        check([100.0, 10.0, 0.0, 20.0, 0.05], 1200.0, 0, 100);
        check([100.0, 10.0, 0.0, 20.0, 0.05], 1200.0, 5000, 100);
        check([100.0, 10.0, 0.1, 20.0, 0.05], 1200.0, 0, 72);
        check([100.0, 10.0, 0.1, 20.0, 0.05], 1200.0, 100, 44);
    }

    #[test]
    fn prompts_get_something_at_any_pace() {
        check([100.0, 10.0, 0.1, 20.0, 0.05], 50.0, 0, PROMPT_TOKENS_MIN);
        check([100.0, 10.0, 0.1, 20.0, 0.05], 1200.0, 10_000, PROMPT_TOKENS_MIN);
        // Nothing was learned yet.
        check([0.0; 5], 1200.0, 10, usize::MAX);
    }

    #[test]
    fn guesses_pay_where_rows_cost_little() {
        let streams = |count| StepShape { sequences: count, ..Default::default() };
        let check = |coefficients, count, expected: f32| {
            let share =
                paying_share(&LatencyModel::from_coefficients(coefficients), &streams(count));
            assert!((share - expected).abs() < 1e-6, "{share} instead of {expected}");
        };
        check([0.0; 5], 1.0, 0.0);
        check([90.0, 0.0, 0.0, 10.0, 0.0], 1.0, 0.1);
        check([90.0, 0.0, 0.0, 10.0, 0.0], 9.0, 0.5);
        check([0.0, 0.0, 0.0, 10.0, 0.0], 1.0, 1.0);
    }
}
