//! Pools on GPUs of a driver for tests.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub use cuda_driver::fake::Fake;
use cuda_driver::fake::{NVRTC, libraries, nvml};
use cuda_driver::{Function, Module};
use cuda_kernels::{CopyBlocks, Nvrtc, Source};
use kv_transfer::KvLayout;
use kv_transfer::cuda::{CudaMemory, Device};

use super::content;

/// Where a process finds a driver for tests, and an NVML, which UCX wants there.
pub fn with_nvml() -> [PathBuf; 2] {
    [libraries().into(), nvml().into()]
}

/// A kernel, on the device's default stream, that writes a block some time later.
pub fn write_later(fake: &Fake, memory: &CudaMemory, block: u32, bytes: &[u8]) {
    assert_eq!(bytes.len(), memory.block_bytes());
    let to = memory.base() + u64::from(block) * bytes.len() as u64;
    fake.write_later(memory.device(), to, bytes);
}

/// What copies small blocks, compiled for the tests' GPUs.
pub fn copy_kernel(device: &Arc<Device>) -> Function {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        let nvrtc = Nvrtc::load(Some(&libraries().join(NVRTC)), 13).unwrap();
        nvrtc.compile(&Source::of_copies(), "sm_90").unwrap().image
    });
    Module::load(device, image).unwrap().function(CopyBlocks::KERNEL).unwrap()
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
