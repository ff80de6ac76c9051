//! Chooses the next token from logits.
//!
//! Random numbers are a function of (seed, choice, output position) and candidates are ranked
//! with ties broken by token id, so that a sequence continues anywhere with the same tokens.

use grammar::{GrammarError, GrammarState, TokenSet};
use protocol::v1::{Sampling, Token, TokenLogprob};

use crate::kernels::exp;

/// What sampling needs to know of a sequence beside its logits.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Prompt and output so far.
    pub tokens: &'a [u32],
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
    /// Tokens that end a text: not before it has so many output tokens.
    pub stop_token_ids: &'a [u32],
    pub min_tokens: usize,
}

/// Chooses the token after `context`, and those after its drafts for as long as each draft is what is
/// chosen anyway. The drafts are the last tokens of `context`; `choose` gives the token on top of the
/// first so many of them, of those allowed where that says any. One token comes at least.
/// Errors: the grammar cannot be followed.
pub fn verify(
    context: &Context<'_>,
    drafts: usize,
    mut grammar: Option<&mut GrammarState>,
    mut choose: impl FnMut(usize, &Context<'_>, Option<&TokenSet>) -> Token,
) -> Result<Vec<Token>, GrammarError> {
    let certain = context.tokens.len() - drafts;
    let mut tokens = Vec::new();
    for draft in 0..=drafts {
        let here = Context { tokens: &context.tokens[..certain + draft], ..*context };
        let mut allowed = grammar.as_deref_mut().map(GrammarState::allowed).transpose()?;
        let token = loop {
            let token = choose(draft, &here, allowed.as_ref());
            let (Some(grammar), Some(allowed)) = (&mut grammar, &mut allowed) else { break token };
            if grammar.would_accept(token.id) || !allowed.remove(token.id) {
                break token;
            }
        };
        grammar.as_deref_mut().map(|grammar| grammar.accept(token.id)).transpose()?;
        let is_as_drafted = context.tokens.get(certain + draft) == Some(&token.id);
        tokens.push(token);
        if !is_as_drafted {
            break;
        }
    }
    Ok(tokens)
}

/// Chooses a token, of those allowed where that says any. `logits` (`[vocabulary_size]`) is used as
/// scratch.
pub fn sample(
    logits: &mut [f32],
    sampling: &Sampling,
    context: &Context<'_>,
    allowed: Option<&TokenSet>,
) -> Token {
    let report = sampling.logprobs.map(|alternatives| Logprobs::of(logits, alternatives as usize));
    let id = match allowed.and_then(TokenSet::only) {
        Some(only) => only,
        None => choose(logits, sampling, context, allowed),
    };
    match report {
        None => Token { id, ..Default::default() },
        Some(report) => report.token(id),
    }
}

/// A token that is there already, with its logprobs. `logits` are those of its position.
pub fn report(logits: &[f32], token: u32, alternatives: u32) -> Token {
    Logprobs::of(logits, alternatives as usize).token(token)
}

fn choose(
    logits: &mut [f32],
    sampling: &Sampling,
    context: &Context<'_>,
    allowed: Option<&TokenSet>,
) -> u32 {
    let position = context.tokens.len() - context.prompt_tokens;
    adjust(logits, sampling, context);
    if let Some(allowed) = allowed {
        allowed.forbid_others(logits);
    }
    if position < context.min_tokens {
        forbid_stops(logits, context.stop_token_ids);
    }
    if let Some(allowed) = allowed.filter(|_| max_of(logits) == f32::NEG_INFINITY) {
        // The weights have no opinion, or are broken.
        return allowed.iter().next().unwrap_or_default();
    }
    match sampling.temperature {
        0.0 => argmax(logits),
        _ => draw(logits, sampling, uniform(sampling.seed, sampling.choice, position as u64)),
    }
}

/// A text that its grammar ends here ends all the same.
fn forbid_stops(logits: &mut [f32], stop_token_ids: &[u32]) {
    let is_other =
        |(id, logit): (u32, &f32)| *logit > f32::NEG_INFINITY && !stop_token_ids.contains(&id);
    if !(0..).zip(logits.iter()).any(is_other) {
        return;
    }
    for token in stop_token_ids {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Log-probabilities under the model's own distribution, before penalties and temperature.
struct Logprobs {
    logits: Vec<f32>,
    log_sum: f64,
    top: Vec<u32>,
}

impl Logprobs {
    fn of(logits: &[f32], alternatives: usize) -> Self {
        let sum: f64 = relative_weights(logits, 1.0).iter().copied().map(f64::from).sum();
        let mut top: Vec<u32> = (0..logits.len() as u32).collect();
        keep_largest(&mut top, logits, alternatives);
        Self { logits: logits.to_vec(), log_sum: f64::from(max_of(logits)) + libm::log(sum), top }
    }

    fn token(&self, id: u32) -> Token {
        let logprob = |id: u32| (f64::from(self.logits[id as usize]) - self.log_sum) as f32;
        let alternative = |id: &u32| TokenLogprob { id: *id, logprob: logprob(*id) };
        let top_logprobs = self.top.iter().map(alternative).collect();
        Token { id, logprob: Some(logprob(id)), top_logprobs }
    }
}

/// Whether nothing changes logits before a token is chosen from them, and nothing is reported of them.
pub fn is_plain(sampling: &Sampling) -> bool {
    let is_neutral = sampling.repetition_penalty == 1.0 || sampling.repetition_penalty <= 0.0;
    let is_free = sampling.frequency_penalty == 0.0 && sampling.presence_penalty == 0.0;
    is_neutral && is_free && sampling.logit_bias.is_empty() && sampling.logprobs.is_none()
}

/// Applies penalties (as OpenAI and, for repetition, Keskar et al. 2019 define them) and biases.
fn adjust(logits: &mut [f32], sampling: &Sampling, context: &Context<'_>) {
    let output = &context.tokens[context.prompt_tokens..];
    if sampling.repetition_penalty != 1.0 && sampling.repetition_penalty > 0.0 {
        for_each_distinct(context.tokens, |token, _| {
            let logit = &mut logits[token as usize];
            let penalty = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        });
    }
    if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
        for_each_distinct(output, |token, count| {
            logits[token as usize] -=
                sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
        });
    }
    for bias in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(bias.token as usize) {
            *logit += bias.bias;
        }
    }
}

fn for_each_distinct(tokens: &[u32], mut visit: impl FnMut(u32, usize)) {
    let mut sorted = tokens.to_vec();
    sorted.sort_unstable();
    for run in sorted.chunk_by(|a, b| a == b) {
        visit(run[0], run.len());
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let max = max_of(logits);
    logits.iter().position(|logit| *logit == max).unwrap_or(0) as u32
}

/// The largest number. NaN (from broken weights) counts as the smallest, here and below.
fn max_of(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Draws by inverting the cumulative distribution over the candidates that min_p, top_k and top_p
/// (Holtzman et al. 2020) leave. `random` is in `[0, 1)`.
fn draw(logits: &[f32], sampling: &Sampling, random: f64) -> u32 {
    let weights = relative_weights(logits, sampling.temperature);
    let likely = |id: &u32| weights[*id as usize] >= sampling.min_p;
    let mut candidates: Vec<u32> = (0..logits.len() as u32).filter(likely).collect();
    if sampling.top_k > 0 {
        keep_largest(&mut candidates, &weights, sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        keep_top_p(&mut candidates, &weights, sampling.top_p);
    }
    let weight = |id: &u32| f64::from(weights[*id as usize]);
    let target = random * candidates.iter().map(weight).sum::<f64>();
    let mut cumulative = 0.0;
    let chosen = candidates.iter().find(|id| {
        cumulative += weight(id);
        target < cumulative
    });
    chosen.copied().unwrap_or_else(|| argmax(logits))
}

/// `e^((logit - max) / temperature)`: probabilities, each divided by the largest.
fn relative_weights(logits: &[f32], temperature: f32) -> Vec<f32> {
    let max = max_of(logits);
    logits.iter().map(|logit| exp_or_zero((logit - max) / temperature)).collect()
}

fn exp_or_zero(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { exp(x) }
}

/// Keeps the `count` largest, in order; equal ones by id.
fn keep_largest(ids: &mut Vec<u32>, values: &[f32], count: usize) {
    let key = |id: u32| match values[id as usize] {
        value if value.is_nan() => f32::NEG_INFINITY,
        value => value,
    };
    let order = |a: &u32, b: &u32| key(*b).total_cmp(&key(*a)).then(a.cmp(b));
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
    }
    ids.truncate(count);
    ids.sort_unstable_by(order);
}

/// Keeps the most likely ones until they have `top_p` of the probability; one at least. Sorts no
/// more than it must: a vocabulary is large, and what matters of it is mostly small.
fn keep_top_p(ids: &mut Vec<u32>, weights: &[f32], top_p: f32) {
    let weight = |id: &u32| f64::from(weights[*id as usize]);
    let enough = f64::from(top_p) * ids.iter().map(weight).sum::<f64>();
    for count in [64, 1024, ids.len()] {
        let mut largest = ids.clone();
        keep_largest(&mut largest, weights, count);
        let mut cumulative = 0.0;
        let reached = largest.iter().position(|id| {
            cumulative += weight(id);
            cumulative >= enough
        });
        if let Some(last) = reached {
            largest.truncate(last + 1);
            *ids = largest;
            return;
        }
    }
}

/// A number in `[0, 1)` with 53 random bits (SplitMix64's finaliser, Steele et al. 2014, chained).
pub fn uniform(seed: u64, choice: u32, position: u64) -> f64 {
    let bits = mix(mix(mix(seed) ^ u64::from(choice)) ^ position);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::v1::LogitBias;

    fn neutral() -> Sampling {
        Sampling { temperature: 1.0, top_p: 1.0, repetition_penalty: 1.0, ..Default::default() }
    }

    fn after(tokens: &[u32], prompt_tokens: usize) -> Context<'_> {
        Context { tokens, prompt_tokens, stop_token_ids: &[], min_tokens: 0 }
    }

    /// Samples with each of many seeds and returns how often each token came.
    fn frequencies(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
        const DRAWS: u64 = 20_000;
        let mut counts = vec![0.0; logits.len()];
        for seed in 0..DRAWS {
            let sampling = Sampling { seed, ..sampling.clone() };
            let token = sample(&mut logits.to_vec(), &sampling, &after(&[0], 1), None);
            counts[token.id as usize] += 1.0 / DRAWS as f64;
        }
        counts
    }

    #[track_caller]
    fn check_frequencies(sampling: &Sampling, expected: [f64; 4]) {
        let logits = [0.4f32, 0.1, 0.2, 0.3].map(f32::ln);
        let found = frequencies(&logits, sampling);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 0.02, "{found} instead of {expected}");
        }
    }

    #[test]
    fn draws_follow_the_filtered_distribution() {
        check_frequencies(&neutral(), [0.4, 0.1, 0.2, 0.3]);
        check_frequencies(&Sampling { top_k: 2, ..neutral() }, [4.0 / 7.0, 0.0, 0.0, 3.0 / 7.0]);
        check_frequencies(
            &Sampling { top_p: 0.8, ..neutral() },
            [4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0],
        );
        check_frequencies(&Sampling { top_p: 0.0, ..neutral() }, [1.0, 0.0, 0.0, 0.0]);
        check_frequencies(&Sampling { min_p: 0.6, ..neutral() }, [4.0 / 7.0, 0.0, 0.0, 3.0 / 7.0]);
        let squares = [0.16 / 0.3, 0.01 / 0.3, 0.04 / 0.3, 0.09 / 0.3];
        check_frequencies(&Sampling { temperature: 0.5, ..neutral() }, squares);
    }

    #[track_caller]
    fn check_greedy(sampling: Sampling, tokens: &[u32], prompt_tokens: usize, expected: u32) {
        let mut logits = vec![1.0, 1.5, 1.2, -2.0];
        let sampling = Sampling { temperature: 0.0, ..sampling };
        assert_eq!(
            sample(&mut logits, &sampling, &after(tokens, prompt_tokens), None).id,
            expected
        );
    }

    #[test]
    fn penalties_and_biases_change_the_choice() {
        check_greedy(neutral(), &[0], 1, 1);
        let frequency = Sampling { frequency_penalty: 0.2, ..neutral() };
        check_greedy(frequency.clone(), &[0, 1], 1, 1);
        check_greedy(frequency.clone(), &[0, 1, 1], 1, 2);
        check_greedy(frequency, &[1, 1, 1], 3, 1);
        check_greedy(Sampling { presence_penalty: 0.4, ..neutral() }, &[0, 1], 1, 2);
        check_greedy(Sampling { repetition_penalty: 2.0, ..neutral() }, &[1], 1, 2);
        let bias = LogitBias { token: 3, bias: 100.0 };
        check_greedy(Sampling { logit_bias: vec![bias], ..neutral() }, &[0], 1, 3);
    }

    #[test]
    fn stops_that_come_too_early_and_nan_are_not_chosen() {
        let context = Context { stop_token_ids: &[1], min_tokens: 1, ..after(&[0], 1) };
        let greedy = Sampling { temperature: 0.0, ..neutral() };
        assert_eq!(sample(&mut [1.0, 9.0, f32::NAN], &greedy, &context, None).id, 0);
        assert_eq!(sample(&mut [1.0, 9.0, f32::NAN], &neutral(), &context, None).id, 0);
        let late = Context { min_tokens: 0, ..context };
        assert_eq!(sample(&mut [1.0, 9.0, f32::NAN], &greedy, &late, None).id, 1);
        let only = [f32::NEG_INFINITY, 1.0];
        assert_eq!(sample(&mut only.to_vec(), &greedy, &context, None).id, 1);
    }

    /// Greedy choices after drafts, one row of logits each.
    #[track_caller]
    fn check_verified(drafts: &[u32], favourites: &[usize], expected: &[u32]) {
        let mut rows = vec![0.0; favourites.len() * 4];
        for (row, favourite) in rows.chunks_exact_mut(4).zip(favourites) {
            row[*favourite] = 1.0;
        }
        let tokens = [&[0], drafts].concat();
        let greedy = Sampling { temperature: 0.0, ..neutral() };
        let mut rows: Vec<&mut [f32]> = rows.chunks_exact_mut(4).collect();
        let chosen = verify(&after(&tokens, 1), drafts.len(), None, |row, context, allowed| {
            sample(rows[row], &greedy, context, allowed)
        });
        let chosen = chosen.unwrap();
        assert_eq!(chosen.iter().map(|token| token.id).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn drafts_count_as_far_as_they_would_have_been_chosen() {
        check_verified(&[], &[3], &[3]);
        check_verified(&[3, 1], &[3, 1, 2], &[3, 1, 2]);
        check_verified(&[3, 1], &[3, 2, 1], &[3, 2]);
        check_verified(&[3, 1], &[0, 1, 2], &[0]);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let mut logits = [0.5f32, 0.25, 0.25].map(f32::ln);
        let bias = LogitBias { token: 2, bias: 100.0 };
        let sampling = Sampling { logprobs: Some(2), logit_bias: vec![bias], ..neutral() };
        let token = sample(&mut logits, &sampling, &after(&[0], 1), None);
        assert_eq!(token.id, 2);
        assert!((token.logprob.unwrap() - 0.25f32.ln()).abs() < 1e-6);
        let top: Vec<u32> = token.top_logprobs.iter().map(|top| top.id).collect();
        assert_eq!(top, [0, 1]);
    }

    #[test]
    fn random_numbers_depend_on_seed_choice_and_position() {
        let all = [uniform(1, 0, 0), uniform(2, 0, 0), uniform(1, 1, 0), uniform(1, 0, 1)];
        for (index, number) in all.iter().enumerate() {
            assert!((0.0..1.0).contains(number));
            assert!(!all[..index].contains(number));
        }
        assert_eq!(uniform(1, 0, 0), all[0]);
    }
}
