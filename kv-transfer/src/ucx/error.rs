//! Why UCX did not move blocks.

use std::io;

/// Why the ucx way cannot be gone. The next way can.
#[derive(Debug, thiserror::Error)]
pub enum UcxError {
    /// The program cannot be started.
    #[error("cannot start the UCX agent")]
    Start(#[source] io::Error),
    /// The agent says why it cannot serve.
    #[error("{0}")]
    Unusable(String),
    /// The pool is not one that other processes can map.
    #[error("the KV pool is not in shared memory")]
    NotShared,
    /// Between the end of one agent and the beginning of the next.
    #[error("there is no UCX agent now")]
    Down,
    /// The agent ended, or was ended, while it read.
    #[error("the UCX agent ended in the middle of a transfer")]
    Died,
    /// UCX gave a read up.
    #[error("{0}")]
    Failed(String),
}
