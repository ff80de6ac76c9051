//! Blocks set aside for a prompt that another worker computes.

use kv_transfer::BlockWriter;

/// What a reader needs to fill a reserved sequence's blocks.
pub struct Reserved {
    /// Blocks at the prompt's start that this pool had already: the transfer begins after them.
    pub cached_blocks: usize,
    /// Fills the others, in prompt order. Drop it before the sequence is activated or aborted.
    pub writer: BlockWriter,
}
