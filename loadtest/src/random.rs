//! Independent streams of random numbers, all decided by one seed.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What random numbers are for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    Arrivals,
    /// The words that all conversations share.
    Prefix,
    /// The questions of one conversation, by its number.
    Conversation(u64),
}

/// Random numbers for one purpose.
pub fn random(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(match purpose {
        Purpose::Arrivals => 0,
        Purpose::Prefix => 1,
        Purpose::Conversation(number) => number.wrapping_add(2),
    });
    random
}
