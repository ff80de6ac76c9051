//! A KV pool in the memory of a GPU.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::copies::Copies;
use super::{CudaError, Device, Lent};
use cuda_driver::Pinned;
use cuda_driver::{
    DevicePointer, EVENT_DISABLE_TIMING, EVENT_INTERPROCESS, Function, Handle, IpcHandle,
};

/// Allocations are whole multiples of this: the driver places smaller ones side by side, and who is
/// lent one of them would see the others.
pub(crate) const GRAIN_BYTES: usize = 2 << 20;

/// A fixed number of equal blocks in a GPU's memory, one after the other, zeroed. From the driver's
/// plain allocator, because only its memory can be lent to other processes. Which block belongs to
/// whom is the block pool's business, so every access is unsafe and says whom it relies on.
pub struct CudaMemory {
    device: Arc<Device>,
    base: DevicePointer,
    blocks: usize,
    block_bytes: usize,
    /// Recorded behind the computation that wrote blocks last.
    written: Handle,
    /// What other processes are told, once somebody asked.
    lent: Mutex<Option<Result<Lent, CudaError>>>,
    /// The kernel `copy_blocks`, where it was compiled for this GPU.
    copier: Option<Function>,
}

impl CudaMemory {
    /// Allocates room for `blocks` blocks. Errors: it does not fit, or the GPU is lost.
    pub fn new(device: &Arc<Device>, blocks: usize, block_bytes: usize) -> Result<Self, CudaError> {
        let ordinal = device.ordinal();
        let too_large = |bytes, free_bytes| CudaError::PoolTooLarge { ordinal, bytes, free_bytes };
        let bytes = blocks.checked_mul(block_bytes).filter(|bytes| *bytes > 0);
        let bytes = bytes.and_then(|bytes| bytes.checked_next_multiple_of(GRAIN_BYTES));
        let bytes = bytes.ok_or_else(|| too_large(usize::MAX, 0))?;
        let written = create_event(device)?;
        let mut memory = Self {
            device: device.clone(),
            base: 0,
            blocks,
            block_bytes,
            written,
            lent: Mutex::new(None),
            copier: None,
        };
        let _current = device.enter()?;
        // SAFETY: the pointer is valid, and the bytes set are those allocated.
        let allocated = unsafe { device.driver().allocate(&mut memory.base, bytes) };
        match allocated {
            Err(CudaError::OutOfMemory { .. }) => Err(too_large(bytes, device.free_bytes()?)),
            Err(error) => Err(error),
            Ok(()) => {
                // SAFETY: as above. The host does not wait for it, and neither do streams of ours.
                unsafe {
                    device.driver().set_bytes(memory.base, 0, bytes)?;
                    device.driver().wait_for_stream(Handle::NULL)?;
                }
                Ok(memory)
            }
        }
    }

    /// Small blocks come into it by this kernel (`cuda_kernels::CopyBlocks`) and not by a copy each.
    pub fn copied_by(mut self, copier: Option<Function>) -> Self {
        self.copier = copier;
        self
    }

    pub(super) fn copier(&self) -> Option<&Function> {
        self.copier.as_ref()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The address of the first block; the others follow, `block_bytes` apart.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where `blocks` blocks from `first` on lie.
    pub(super) fn run(&self, first: u32, blocks: u32) -> Range<DevicePointer> {
        let behind = (first as usize).saturating_add(blocks as usize);
        assert!(behind <= self.blocks, "blocks up to {behind} of a pool of {}", self.blocks);
        let start = self.base + u64::from(first) * self.block_bytes as u64;
        start..start + u64::from(blocks) * self.block_bytes as u64
    }

    pub(super) fn written(&self) -> Handle {
        self.written
    }

    /// From now on whoever reads or fills blocks first waits, on the GPU, for what was submitted to
    /// this stream (`CUstream`) until now. To be called before blocks are announced that a kernel
    /// writes which may not have ended, and before blocks are freed that one may still read.
    ///
    /// # Safety
    /// The stream is one of this device's primary context, or null for its default stream.
    pub unsafe fn record_written(&self, stream: *mut c_void) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the event lives; the stream by the caller's promise.
        unsafe { self.device.driver().record_event(self.written, Handle(stream)) }
    }

    /// Waits until what was recorded last (`record_written`) has been done.
    pub(crate) async fn settled(&self) -> Result<(), CudaError> {
        let mut copies = Copies::begin(&self.device)?;
        copies.after(self.written)?;
        copies.settled().await
    }

    /// The bytes of `blocks` blocks from `first` on, once they are written.
    ///
    /// # Safety
    /// Nobody writes to these blocks meanwhile.
    pub unsafe fn read_blocks(&self, first: u32, blocks: u32) -> Result<Vec<u8>, CudaError> {
        let run = self.run(first, blocks);
        let mut bytes = Vec::with_capacity((run.end - run.start) as usize);
        let mut buffer = Pinned::take(&self.device, 1)?;
        let mut copies = Copies::begin(&self.device)?;
        copies.after(self.written)?;
        for start in run.clone().step_by(buffer.len()) {
            let length = buffer.len().min((run.end - start) as usize);
            // SAFETY: in the pool; unwritten by the caller's promise; settled before it is looked at.
            unsafe { copies.fetch(buffer.slice_mut(0..length), start) }?;
            copies.settle()?;
            bytes.extend_from_slice(buffer.slice(0..length));
        }
        Ok(bytes)
    }

    /// Overwrites blocks from `first` on, as many as `bytes` are, and waits until that is done.
    ///
    /// # Safety
    /// Nobody else reads or writes these blocks meanwhile.
    pub unsafe fn write_blocks(&self, first: u32, bytes: &[u8]) -> Result<(), CudaError> {
        assert_eq!(bytes.len() % self.block_bytes, 0, "whole blocks");
        let mut to = self.run(first, (bytes.len() / self.block_bytes) as u32).start;
        let mut buffer = Pinned::take(&self.device, 1)?;
        let mut copies = Copies::begin(&self.device)?;
        copies.after(self.written)?;
        for part in bytes.chunks(buffer.len()) {
            buffer.slice_mut(0..part.len()).copy_from_slice(part);
            // SAFETY: in the pool; exclusive by the caller's promise; settled before the buffer is
            // filled again.
            unsafe { copies.send(to, buffer.slice(0..part.len())) }?;
            copies.settle()?;
            to += part.len() as u64;
        }
        Ok(())
    }

    /// What another process needs to read this pool. Errors: the driver does not share it.
    pub(crate) fn lend(&self) -> Result<Lent, CudaError> {
        let mut lent = self.lent.lock();
        match &*lent {
            Some(known) => known.clone(),
            None => {
                let exported = self.export();
                // What may be otherwise in a moment is asked again.
                if !matches!(exported, Err(CudaError::OutOfMemory { .. })) {
                    *lent = Some(exported.clone());
                }
                exported
            }
        }
    }

    fn export(&self) -> Result<Lent, CudaError> {
        let _current = self.device.enter()?;
        let (mut memory, mut event) = (IpcHandle([0; 64]), IpcHandle([0; 64]));
        // SAFETY: the pointers are valid, and memory and event live.
        unsafe {
            self.device.driver().ipc_memory(&mut memory, self.base)?;
            self.device.driver().ipc_event(&mut event, self.written)?;
        }
        Ok(Lent { bytes: (self.blocks * self.block_bytes) as u64, memory, event })
    }
}

/// An event that other processes may wait for; where the driver has none, one for this process.
fn create_event(device: &Device) -> Result<Handle, CudaError> {
    let _current = device.enter()?;
    let mut event = Handle::NULL;
    // SAFETY: the pointers are valid.
    unsafe {
        let shared = EVENT_DISABLE_TIMING | EVENT_INTERPROCESS;
        match device.driver().create_event(&mut event, shared) {
            Err(CudaError::Call { .. }) => {
                device.driver().create_event(&mut event, EVENT_DISABLE_TIMING)?;
            }
            created => created?,
        }
    }
    Ok(event)
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: nobody else has the memory and the event; copies of ours hold the pool until they
        // have ended. Errors are of no use: what is lost is gone.
        unsafe {
            if self.base != 0 {
                let _freed = self.device.driver().free(self.base);
            }
            let _destroyed = self.device.driver().destroy_event(self.written);
        }
    }
}
