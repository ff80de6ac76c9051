//! What happens in one schedule, all of it a function of a seed.

use std::time::Duration;

use engine::{EngineConfig, SequenceId, SequenceRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::request;

/// Sequences come within so many steps.
pub const ARRIVALS_STEPS: usize = 60;
/// Blocks are held for a reader, or set aside, for so many steps at most.
pub const HOLD_STEPS_MAX: usize = 40;
const SEQUENCES_MAX: usize = 16;
const OUTPUT_TOKENS_MAX: u32 = 40;

/// A schedule.
#[derive(Debug)]
pub struct Plan {
    pub config: EngineConfig,
    /// The id of a sequence is its index.
    pub sequences: Vec<Planned>,
}

/// A sequence, and what becomes of it.
#[derive(Debug)]
pub struct Planned {
    pub request: SequenceRequest,
    pub comes_at: usize,
    pub purpose: Purpose,
    /// Its client goes so many steps after it came.
    pub cancelled_after: Option<usize>,
}

/// What it is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    Generate,
    /// A reader releases it so many steps after its first token.
    Prefill {
        held_steps: usize,
    },
    /// So many steps later its blocks are filled, or will never be.
    Reserve {
        steps: usize,
        is_filled: bool,
    },
}

impl Plan {
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let block_size = [1, 2, 4, 8][rng.random_range(0..4)];
        let kv_blocks = rng.random_range(4..32);
        let config = EngineConfig {
            block_size,
            kv_blocks,
            max_num_seqs: rng.random_range(1..=8),
            max_num_batched_tokens: 64f64.powf(rng.random_range(0.0..=1.0)) as usize,
            waiting_sequences_max: 64,
            speculative_tokens: rng.random_range(0..8),
            step_target: rng.random_bool(0.3).then_some(Duration::from_micros(20)),
            shares_memory: false,
        };
        let pool_tokens = block_size * kv_blocks;
        let prefix = tokens(&mut rng, pool_tokens / 2);
        let count = rng.random_range(2..=SEQUENCES_MAX) as u64;
        let sequence = |id| Planned::draw(&mut rng, SequenceId(id), pool_tokens, &prefix);
        Self { config, sequences: (0..count).map(sequence).collect() }
    }
}

impl Planned {
    fn draw(rng: &mut StdRng, id: SequenceId, pool_tokens: usize, prefix: &[u32]) -> Self {
        let prompt_tokens_max =
            if rng.random() { pool_tokens - 1 } else { pool_tokens.div_ceil(4) };
        let prompt_tokens = rng.random_range(1..=prompt_tokens_max);
        let mut prompt = if rng.random() { prefix.to_vec() } else { Vec::new() };
        prompt.extend(tokens(rng, prompt_tokens));
        prompt.truncate(prompt_tokens);
        let priority = if rng.random_bool(0.3) { rng.random_range(-2..3) } else { 0 };
        let max_tokens = rng.random_range(1..=OUTPUT_TOKENS_MAX);
        let purpose = match rng.random_range(0..10) {
            0..2 => Purpose::Prefill { held_steps: rng.random_range(0..HOLD_STEPS_MAX) },
            2..4 => Purpose::Reserve {
                steps: rng.random_range(0..HOLD_STEPS_MAX),
                is_filled: rng.random(),
            },
            _ => Purpose::Generate,
        };
        Self {
            request: request(id, prompt, max_tokens, priority),
            comes_at: rng.random_range(0..ARRIVALS_STEPS),
            purpose,
            cancelled_after: rng.random_bool(0.1).then(|| rng.random_range(0..ARRIVALS_STEPS)),
        }
    }
}

fn tokens(rng: &mut StdRng, count: usize) -> Vec<u32> {
    (0..count).map(|_| rng.random_range(0..64)).collect()
}
