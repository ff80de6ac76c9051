//! Pools on GPUs of a driver for tests.

use std::sync::Arc;

pub use cuda_driver::fake::Fake;
use kv_transfer::KvLayout;
use kv_transfer::cuda::{CudaMemory, Device};

use super::content;

/// A kernel, on the device's default stream, that writes a block some time later.
pub fn write_later(fake: &Fake, memory: &CudaMemory, block: u32, bytes: &[u8]) {
    assert_eq!(bytes.len(), memory.block_bytes());
    let to = memory.base() + u64::from(block) * bytes.len() as u64;
    fake.write_later(memory.device(), to, bytes);
}

/// A pool on a GPU whose blocks hold their `content`.
pub fn pool_with_content(device: &Arc<Device>, blocks: u32, layout: &KvLayout) -> Arc<CudaMemory> {
    let bytes = layout.block_bytes();
    let memory = CudaMemory::new(device, blocks as usize, bytes).unwrap();
    let all: Vec<u8> = (0..blocks).flat_map(|block| content(block, bytes)).collect();
    // SAFETY: nobody else has this memory yet.
    unsafe { memory.write_blocks(0, &all) }.unwrap();
    Arc::new(memory)
}
