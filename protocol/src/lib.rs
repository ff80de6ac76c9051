//! What crosses a process: the protobuf messages and gRPC services of `proto/`, the hashes that
//! name KV blocks, the identities of workers, and the models of how long their steps and copies take.

mod block_hash;
mod identity;
mod latency;
pub mod link;
pub mod subjects;
mod watchdog;

pub use block_hash::{BlockHash, BlockHasher, hashes_from_bytes, hashes_to_bytes};
pub use identity::{Incarnation, WorkerId, WorkerLife};
pub use latency::{LAST_STEP_TOKENS, LONG_PROMPT_TOKENS, StepShape, last_step_tokens};
pub use watchdog::{HEARTBEAT, SILENCE_MAX};

/// Largest message of the data plane: a prompt of a million tokens fits.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What a worker may do beyond the first version of the contract: see `WorkerRegistration.features`.
pub const FEATURE_GRAMMAR: &str = "grammar";
/// Likewise.
pub const FEATURE_PROMPT_LOGPROBS: &str = "prompt_logprobs";

/// The generated messages and services of `proto/*.proto`.
pub mod v1 {
    #![allow(clippy::doc_markdown, clippy::large_enum_variant, missing_docs)]
    tonic::include_proto!("stator.v1");
}
