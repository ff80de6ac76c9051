//! What to compute next: sequences, and the scheduler that batches them.

mod scheduler;
mod sequence;

pub use scheduler::{Limits, Scheduled, Scheduler};
pub use sequence::{Purpose, Sequence, SequenceId, SequenceRequest};
