//! The block pool: who holds which KV block, and which blocks can be found again by their hash.

mod block_pool;
mod reserved;

pub use block_pool::{BlockCounts, BlockPool, KvEvent};
pub use reserved::Reserved;
