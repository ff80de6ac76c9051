//! How fast this worker computes, learned from its own steps.

use engine::StepOutput;

/// Weight of a new measurement in the running mean.
const WEIGHT: f32 = 0.2;

/// Fewer prompt tokens in a step say little about the time per token: the step's own cost prevails.
const PREFILL_TOKENS_MIN: usize = 32;

/// Smoothed measurements; 0 until there is one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Time per prompt token.
    pub prefill_us_per_token: f32,
    /// Time of a step that only decodes.
    pub decode_step_us: f32,
}

impl Speed {
    /// Takes one step into account. In a mixed step, what exceeds a pure decode step is prefill's.
    pub fn record(&mut self, output: &StepOutput) {
        let took_us = output.took.as_secs_f32() * 1e6;
        if output.prefill_tokens == 0 {
            smooth(&mut self.decode_step_us, took_us);
            return;
        }
        if output.prefill_tokens < PREFILL_TOKENS_MIN {
            return;
        }
        let decode_us = if output.decode_sequences > 0 { self.decode_step_us } else { 0.0 };
        let prefill_us = (took_us - decode_us).max(0.0);
        smooth(&mut self.prefill_us_per_token, prefill_us / output.prefill_tokens as f32);
    }
}

fn smooth(mean: &mut f32, measured: f32) {
    *mean = if *mean == 0.0 { measured } else { *mean + WEIGHT * (measured - *mean) };
}
