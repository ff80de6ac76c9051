//! What to compute next: sequences, and the scheduler that batches them.

mod lookup;
mod pace;
mod scheduler;
mod sequence;
mod share;
#[cfg(test)]
mod tests;

pub use lookup::Guesses;
pub use scheduler::{Limits, Scheduled, Scheduler};
pub use sequence::{Purpose, Rank, Sequence, SequenceId, SequenceRequest};
