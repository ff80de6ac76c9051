//! How long an engine step takes: a linear model of what the step computes. Workers learn its
//! coefficients, routers predict with them.

use crate::v1::LatencyModel;

/// Where another worker pulls a prompt's blocks, from which length on its last tokens have a step of
/// their own.
pub const LONG_PROMPT_TOKENS: usize = 1024;

/// How many these are.
pub const LAST_STEP_TOKENS: usize = 64;

/// What a step computes, as far as its duration depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepShape {
    /// Prompt tokens.
    pub prefill_tokens: f32,
    /// Tokens that each of them attends to, summed over them.
    pub prefill_attended: f32,
    /// Sequences that decode.
    pub sequences: f32,
    /// Tokens that they attend to, summed over them.
    pub attended: f32,
}

impl StepShape {
    /// What the model's coefficients are multiplied with, in the order of `LatencyModel`'s fields.
    pub fn features(&self) -> [f32; 5] {
        [1.0, self.prefill_tokens, self.prefill_attended, self.sequences, self.attended]
    }
}

impl LatencyModel {
    /// The coefficients in the order of the fields.
    pub fn coefficients(&self) -> [f32; 5] {
        let Self {
            step_us, prefill_token_us, prefill_attended_us, sequence_us, attended_us, ..
        } = *self;
        [step_us, prefill_token_us, prefill_attended_us, sequence_us, attended_us]
    }

    /// Whether predictions can be made from it: nothing else may come from another process.
    pub fn is_sound(&self) -> bool {
        self.coefficients().iter().all(|c| c.is_finite() && *c >= 0.0)
    }

    /// The inverse of `coefficients`.
    pub fn from_coefficients(coefficients: [f32; 5]) -> Self {
        let [step_us, prefill_token_us, prefill_attended_us, sequence_us, attended_us] =
            coefficients;
        Self {
            step_us,
            prefill_token_us,
            prefill_attended_us,
            sequence_us,
            attended_us,
            ..Default::default()
        }
    }

    /// Duration of a step, in microseconds.
    pub fn predict_step_us(&self, shape: &StepShape) -> f32 {
        self.coefficients().iter().zip(shape.features()).map(|(c, feature)| c * feature).sum()
    }

    /// Duration of computing `tokens` prompt tokens after `cached` ones, in steps of at most
    /// `chunk_tokens`, in microseconds.
    pub fn predict_prefill_us(&self, cached: f32, tokens: f32, chunk_tokens: f32) -> f32 {
        let steps = steps(tokens, chunk_tokens);
        let attended = tokens * (cached + (tokens + 1.0) / 2.0);
        steps * self.step_us + tokens * self.prefill_token_us + attended * self.prefill_attended_us
    }

    /// The same for a prompt that another worker pulls: where it is long, its last tokens are a step
    /// of their own.
    pub fn predict_pulled_us(&self, cached: f32, tokens: f32, chunk_tokens: f32) -> f32 {
        let has_own_step = last_tokens(cached, tokens, chunk_tokens).1;
        let last_step_us = if has_own_step { self.step_us } else { 0.0 };
        self.predict_prefill_us(cached, tokens, chunk_tokens) + last_step_us
    }

    /// How long such a prompt is computed after its first step: while what that step made, and what
    /// follows, moves.
    pub fn predict_after_first_step_us(&self, cached: f32, tokens: f32, chunk_tokens: f32) -> f32 {
        let all_us = self.predict_pulled_us(cached, tokens, chunk_tokens);
        let before_last = tokens - last_step_tokens(cached, tokens, chunk_tokens);
        let first = if before_last > 0.0 { before_last.min(chunk_tokens.max(1.0)) } else { tokens };
        (all_us - self.predict_prefill_us(cached, first, chunk_tokens)).max(0.0)
    }
}

/// How many tokens of a prompt that another worker pulls are computed by the last step.
pub fn last_step_tokens(cached: f32, tokens: f32, chunk_tokens: f32) -> f32 {
    match last_tokens(cached, tokens, chunk_tokens) {
        (_, true) => LAST_STEP_TOKENS as f32,
        (last_chunk, false) => last_chunk,
    }
}

/// How many there are in the last chunk, and whether some of these have a step of their own.
fn last_tokens(cached: f32, tokens: f32, chunk_tokens: f32) -> (f32, bool) {
    let last_chunk = tokens - (steps(tokens, chunk_tokens) - 1.0) * chunk_tokens.max(1.0);
    let is_long = cached + tokens >= LONG_PROMPT_TOKENS as f32;
    (last_chunk, is_long && last_chunk > LAST_STEP_TOKENS as f32)
}

/// In how many steps so many tokens are computed. (`f32::ceil` is a call where the compiler may not
/// use SSE4.1; routers ask this of every worker.)
fn steps(tokens: f32, chunk_tokens: f32) -> f32 {
    let exact = tokens / chunk_tokens.max(1.0);
    let whole = exact as u32 as f32;
    if whole < exact { whole + 1.0 } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_prompt_is_the_sum_of_its_steps() {
        let model = LatencyModel::from_coefficients([100.0, 10.0, 0.5, 7.0, 0.1]);
        let step = |tokens: f32, before: f32| {
            model.predict_step_us(&StepShape {
                prefill_tokens: tokens,
                prefill_attended: tokens * before + tokens * (tokens + 1.0) / 2.0,
                ..Default::default()
            })
        };
        let chunks = step(64.0, 32.0) + step(64.0, 96.0) + step(2.0, 160.0);
        assert_eq!(model.predict_prefill_us(32.0, 130.0, 64.0), chunks);
        assert_eq!(model.predict_pulled_us(32.0, 130.0, 64.0), chunks, "a short one");
    }

    #[test]
    fn the_last_tokens_of_a_long_pulled_prompt_are_a_step() {
        let model = LatencyModel::from_coefficients([1.0, 0.0, 0.0, 0.0, 0.0]);
        let check = |cached, tokens, chunk, steps| {
            assert_eq!(model.predict_pulled_us(cached, tokens, chunk), steps, "{tokens}");
        };
        check(0.0, 2000.0, 512.0, 5.0);
        check(0.0, 1600.0, 512.0, 4.0);
        check(0.0, 1024.0, 4096.0, 2.0);
        check(1000.0, 24.0, 4096.0, 1.0);
        check(0.0, 1023.0, 4096.0, 1.0);
    }

    #[test]
    fn what_is_computed_after_the_first_step() {
        let model = LatencyModel::from_coefficients([100.0, 1.0, 0.0, 0.0, 0.0]);
        let check = |cached, tokens, chunk, last, after_us| {
            assert_eq!(last_step_tokens(cached, tokens, chunk), last, "{tokens}");
            assert_eq!(model.predict_after_first_step_us(cached, tokens, chunk), after_us);
        };
        check(0.0, 2000.0, 512.0, 64.0, 4.0 * 100.0 + 1488.0);
        check(0.0, 1024.0, 4096.0, 64.0, 164.0);
        check(0.0, 1000.0, 4096.0, 1000.0, 0.0);
        check(0.0, 1000.0, 600.0, 400.0, 500.0);
        check(3000.0, 1.0, 512.0, 1.0, 0.0);
    }
}
