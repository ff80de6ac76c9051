//! A runner without a model: it takes the time it is told to take, and its next token is a function
//! of the KV bytes of the whole context, so that one wrong byte anywhere changes the text.
//!
//! A token's KV is 8 bytes, the state after it: a hash of the state before, read from the KV of
//! the position before, and of the token.

use std::time::Duration;

use grammar::TokenSet;
use kv_transfer::{HostMemory, KvLayout, KvMemory};
use protocol::v1::{Sampling, Token, TokenLogprob};

use super::{
    Computed, Context, Facts, MockVocabulary, Runner, RunnerError, Span, SpanOutput, on_host,
};

/// Bytes of a state's half: one goes where keys lie, the other where values do.
const HALF_BYTES: usize = 4;

/// How long a mock's steps take, in microseconds. All zero: no time at all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MockTimes {
    /// Each prompt token.
    pub prefill_us_per_token: f64,
    /// Each step.
    pub step_us: f64,
    /// Added to a step by each sequence that decodes.
    pub step_us_per_seq: f64,
}

/// See the module's description. Sampling parameters other than the temperature (0 or not), the
/// seed and `logprobs` are ignored; no token of its own accord ends a text, unless a grammar has it
/// among others.
pub struct MockRunner {
    times: MockTimes,
    words: Vec<u32>,
    facts: Facts,
}

impl MockRunner {
    /// Equal vocabularies give equal numerics ids; times do not count.
    pub fn new(times: MockTimes, vocabulary: MockVocabulary) -> Self {
        let MockVocabulary { vocabulary_size, words, context_tokens, eos_token_ids } = vocabulary;
        assert!(!words.is_empty(), "a mock has words to choose from");
        let mut hasher = blake3::Hasher::new();
        for word in &words {
            hasher.update(&word.to_le_bytes());
        }
        let numerics_id = format!("{}-mock", &hasher.finalize().to_hex()[..16]);
        let facts = Facts {
            weights_id: numerics_id.clone(),
            numerics_id,
            vocabulary_size,
            context_tokens,
            eos_token_ids,
        };
        Self { times, words, facts }
    }

    fn step_time(&self, spans: &[Span<'_>]) -> Duration {
        let decodes = |span: &&Span<'_>| span.tokens.len() == 1 && span.start > 0;
        let sequences = spans.iter().filter(decodes).count();
        let tokens: usize = spans.iter().map(|span| span.tokens.len()).sum();
        let MockTimes { prefill_us_per_token, step_us, step_us_per_seq } = self.times;
        let us = step_us
            + step_us_per_seq * sequences as f64
            + prefill_us_per_token * (tokens - sequences) as f64;
        Duration::from_nanos((us * 1e3) as u64)
    }

    fn conclude(&self, span: &mut Span<'_>, kv: &MockKv<'_>) -> SpanOutput {
        let (blocks, start) = (span.blocks, span.start);
        span.conclude(
            |index, token, alternatives| {
                self.token(token, kv.state(blocks, start + index), Some(alternatives))
            },
            |sampling, _, context, allowed| self.choose(sampling, context, blocks, allowed, kv),
        )
    }

    fn choose(
        &self,
        sampling: &Sampling,
        context: &Context<'_>,
        blocks: &[u32],
        allowed: Option<&TokenSet>,
        kv: &MockKv<'_>,
    ) -> Token {
        let seed = match sampling.temperature {
            0.0 => 0,
            _ => mix(sampling.seed, u64::from(sampling.choice) + 1),
        };
        let drawn = mix(kv.digest(blocks, context.tokens.len()), seed);
        let may_stop = context.tokens.len() - context.prompt_tokens >= context.min_tokens;
        let forbidden = if may_stop { &[][..] } else { context.stop_token_ids };
        self.token(self.draw(drawn, forbidden, allowed), drawn, sampling.logprobs)
    }

    fn draw(&self, drawn: u64, forbidden: &[u32], allowed: Option<&TokenSet>) -> u32 {
        let any: Vec<u32> = match allowed {
            None => {
                let words = (0..self.words.len()).map(|n| self.nth(drawn, n));
                return words
                    .clone()
                    .find(|w| !forbidden.contains(w))
                    .unwrap_or(self.nth(drawn, 0));
            }
            Some(allowed) => allowed.iter().collect(),
        };
        let start = drawn as usize % any.len();
        let mut candidates = any[start..].iter().chain(&any[..start]);
        *candidates.find(|id| !forbidden.contains(id)).unwrap_or(&any[start])
    }

    fn nth(&self, drawn: u64, n: usize) -> u32 {
        self.words[(drawn as usize).wrapping_add(n) % self.words.len()]
    }

    /// The chosen token is the likeliest, then its neighbours, none of them twice.
    fn token(&self, id: u32, drawn: u64, alternatives: Option<u32>) -> Token {
        let logprob = -((drawn >> 40) as f32 / (1 << 24) as f32);
        let others = (0..self.words.len()).map(|n| self.nth(drawn, n)).filter(|word| *word != id);
        let ranked = std::iter::once(id).chain(others).zip(0..);
        let alternative =
            |(id, n): (u32, u16)| TokenLogprob { id, logprob: logprob - f32::from(n) };
        let top = alternatives.map(|count| ranked.take(count as usize).map(alternative).collect());
        Token { id, logprob: top.as_ref().map(|_| logprob), top_logprobs: top.unwrap_or_default() }
    }
}

impl Runner for MockRunner {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn kv_layout(&self, block_size: usize) -> KvLayout {
        KvLayout {
            numerics_id: self.facts.numerics_id.clone(),
            block_size,
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            element_bytes: HALF_BYTES,
        }
    }

    fn run(
        &mut self,
        spans: &mut [Span<'_>],
        layout: &KvLayout,
        memory: &KvMemory,
    ) -> Result<Computed, RunnerError> {
        let (block_size, memory) = (layout.block_size, on_host(memory));
        let kv = MockKv { block_size, values_at: layout.values_offset(0), memory };
        let took = self.step_time(spans);
        let conclude = |span: &mut Span<'_>| {
            kv.write(span);
            self.conclude(span, &kv)
        };
        let spans = spans.iter_mut().map(conclude).collect();
        Ok(Computed { spans, took, is_simulated: true })
    }
}

/// States in a pool's blocks.
struct MockKv<'a> {
    block_size: usize,
    values_at: usize,
    memory: &'a HostMemory,
}

impl MockKv<'_> {
    /// Writes the states of a span's tokens, each from the one before.
    fn write(&self, span: &Span<'_>) {
        let mut state = match span.start {
            0 => 0,
            start => self.state(span.blocks, start - 1),
        };
        for (position, token) in (span.start..).zip(span.tokens) {
            state = mix(state, u64::from(*token) + 1);
            let (block, slot) = self.place(span.blocks, position);
            let bytes = state.to_le_bytes();
            let halves =
                [(slot, &bytes[..HALF_BYTES]), (self.values_at + slot, &bytes[HALF_BYTES..])];
            for (offset, half) in halves {
                // SAFETY: the engine is the only one that computes on this pool, and a block that
                // is not full belongs to this span's sequence alone.
                unsafe { self.memory.write(block, offset, HALF_BYTES) }.copy_from_slice(half);
            }
        }
    }

    /// A function of the states of all positions of a context, and of their order.
    fn digest(&self, blocks: &[u32], context_tokens: usize) -> u64 {
        let mut digest = 0u64;
        let held = blocks.iter().take(context_tokens.div_ceil(self.block_size));
        for (index, block) in held.enumerate() {
            let first = index * self.block_size;
            let slots = self.block_size.min(context_tokens - first);
            // SAFETY: these positions were computed or filled before; nobody writes them again.
            let (keys, values) = unsafe {
                let keys = self.memory.read(*block, 0, slots * HALF_BYTES);
                (keys, self.memory.read(*block, self.values_at, slots * HALF_BYTES))
            };
            let states = keys.as_chunks().0.iter().zip(values.as_chunks().0);
            for (position, (low, high)) in (first as u64..).zip(states) {
                let state = joined(*low, *high) ^ position.wrapping_mul(GOLDEN_RATIO);
                digest = digest.wrapping_add(state.wrapping_mul(ODD));
            }
        }
        digest
    }

    fn state(&self, blocks: &[u32], position: usize) -> u64 {
        let (block, slot) = self.place(blocks, position);
        let half = |offset| {
            // SAFETY: as in `digest`.
            let bytes = unsafe { self.memory.read(block, offset, HALF_BYTES) };
            bytes.try_into().expect("half a state")
        };
        joined(half(slot), half(self.values_at + slot))
    }

    /// A position's block, and where in the block its low half lies.
    fn place(&self, blocks: &[u32], position: usize) -> (u32, usize) {
        (blocks[position / self.block_size], position % self.block_size * HALF_BYTES)
    }
}

fn joined(low: [u8; HALF_BYTES], high: [u8; HALF_BYTES]) -> u64 {
    u64::from(u32::from_le_bytes(low)) | u64::from(u32::from_le_bytes(high)) << 32
}

const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
const ODD: u64 = 0xD6E8_FEB8_6659_FD93;

/// Mixes two numbers (the finalizer of SplitMix64, Steele et al. 2014).
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_mul(GOLDEN_RATIO);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::Choice;
    use super::*;
    use std::sync::Arc;

    const BLOCK_SIZE: usize = 4;

    fn runner() -> MockRunner {
        let times =
            MockTimes { prefill_us_per_token: 10.0, step_us: 1000.0, step_us_per_seq: 100.0 };
        let words = (100..900).collect();
        let vocabulary = MockVocabulary {
            vocabulary_size: 1000,
            words,
            context_tokens: 100,
            eos_token_ids: Vec::new(),
        };
        MockRunner::new(times, vocabulary)
    }

    struct Bench {
        runner: MockRunner,
        layout: KvLayout,
        memory: KvMemory,
    }

    impl Bench {
        fn new() -> Self {
            let runner = runner();
            let layout = runner.kv_layout(BLOCK_SIZE);
            let memory = Arc::new(HostMemory::new(8, layout.block_bytes()).unwrap()).into();
            Self { runner, layout, memory }
        }

        /// Computes tokens from `start` on and returns the next token.
        fn run(&mut self, tokens: &[u32], start: usize, blocks: &[u32], seed: Option<u64>) -> u32 {
            let sampling = Sampling {
                temperature: if seed.is_some() { 1.0 } else { 0.0 },
                seed: seed.unwrap_or(7),
                ..Default::default()
            };
            let context =
                Context { tokens, prompt_tokens: tokens.len(), stop_token_ids: &[], min_tokens: 0 };
            let choice = Some(Choice { sampling: &sampling, context, drafts: 0, grammar: None });
            let tokens = &tokens[start..];
            let span = Span { tokens, start, blocks, choice, prompt_report: None };
            let computed = self.runner.run(&mut [span], &self.layout, &self.memory);
            computed.unwrap().spans[0].tokens[0].id
        }
    }

    const PROMPT: [u32; 10] = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14];

    #[test]
    fn chunks_and_places_change_nothing() {
        let mut bench = Bench::new();
        let whole = bench.run(&PROMPT, 0, &[0, 1, 2], None);
        for cut in 1..PROMPT.len() {
            bench.run(&PROMPT[..cut], 0, &[5, 3, 4], None);
            assert_eq!(bench.run(&PROMPT, cut, &[5, 3, 4], None), whole, "cut at {cut}");
        }
    }

    #[test]
    fn every_byte_of_the_context_matters() {
        let mut bench = Bench::new();
        let whole = bench.run(&PROMPT, 0, &[0, 1, 2], None);
        let last = PROMPT.len() - 1;
        for position in 0..last {
            for offset in [0, bench.layout.values_offset(0)] {
                for byte in 0..HALF_BYTES {
                    let (block, at) =
                        (position / BLOCK_SIZE, position % BLOCK_SIZE * HALF_BYTES + offset + byte);
                    let flip = |bench: &Bench| {
                        // SAFETY: this test alone uses the memory.
                        unsafe { on_host(&bench.memory).write(block as u32, at, 1)[0] ^= 1 }
                    };
                    flip(&bench);
                    assert_ne!(bench.run(&PROMPT, last, &[0, 1, 2], None), whole, "{position}");
                    flip(&bench);
                }
            }
        }
        assert_ne!(bench.run(&PROMPT, last, &[1, 0, 2], None), whole, "blocks in another order");
        assert_eq!(bench.run(&PROMPT, last, &[0, 1, 2], None), whole);
    }

    #[test]
    fn seeds_matter_where_tokens_are_drawn() {
        let mut bench = Bench::new();
        let mut next = |seed| bench.run(&PROMPT, 0, &[0, 1, 2], seed);
        assert_eq!(next(Some(1)), next(Some(1)));
        assert_ne!(next(Some(1)), next(Some(2)));
    }

    #[test]
    fn steps_take_the_time_they_are_told_to() {
        let runner = runner();
        let span = |tokens: &'static [u32], start| Span {
            tokens,
            start,
            blocks: &[],
            choice: None,
            prompt_report: None,
        };
        let check = |spans: &[Span<'_>], us| {
            assert_eq!(runner.step_time(spans), Duration::from_micros(us));
        };
        check(&[span(&PROMPT, 0)], 1100);
        check(&[span(&PROMPT[..1], 9), span(&PROMPT[..1], 4)], 1200);
        check(&[span(&PROMPT[..1], 9), span(&PROMPT, 4)], 1200);
        check(&[span(&PROMPT[..1], 0)], 1010);
    }
}
