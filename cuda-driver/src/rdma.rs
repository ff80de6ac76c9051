//! What network cards of the host may do with a GPU's memory: GPUDirect RDMA.
//!
//! <https://docs.nvidia.com/cuda/gpudirect-rdma/>

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::{CudaError, Device, DevicePointer};

/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`
const DMA_BUF: u32 = 1;

/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX`
const CURRENT_CONTEXT: u32 = 0;

/// `CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER`, and the order of writes at which it is not needed.
const TO_OWNER: u32 = 100;

/// By which network cards' drivers have the memory of any GPU.
const PEER_MODULE: &str = "/sys/module/nvidia_peermem";

/// How what network cards write into a GPU's memory comes to be there for what is submitted later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteWrites {
    /// By itself.
    Ordered,
    /// When it is asked for (`Device::flush_remote_writes`).
    Flushed,
    /// In no way that a process can ask for.
    Unordered,
}

impl Device {
    /// Whether network cards can be given this memory, an allocation or a mapping: as a file
    /// (dma-buf), or because the module nvidia_peermem is loaded. The bytes are whole pages.
    pub fn opens_to_rdma(&self, start: DevicePointer, bytes: usize) -> Result<bool, CudaError> {
        const GPU_DIRECT_RDMA_SUPPORTED: i32 = 116;
        if self.exports(start, bytes)? {
            return Ok(true);
        }
        Ok(self.offers(GPU_DIRECT_RDMA_SUPPORTED) && Path::new(PEER_MODULE).exists())
    }

    /// Whether the driver makes a file of this memory.
    fn exports(&self, start: DevicePointer, bytes: usize) -> Result<bool, CudaError> {
        const DMA_BUF_SUPPORTED: i32 = 124;
        let Some(handle_for_range) = self.driver().handle_for_range else { return Ok(false) };
        if !self.offers(DMA_BUF_SUPPORTED) {
            return Ok(false);
        }
        let _current = self.enter()?;
        let mut file: RawFd = -1;
        // SAFETY: the pointer is valid for what is asked for; what is no memory is the driver's to
        // refuse.
        let code = unsafe { handle_for_range((&raw mut file).cast(), start, bytes, DMA_BUF, 0) };
        match self.driver().check("cuMemGetHandleForAddressRange", code) {
            Ok(()) => {
                // SAFETY: the driver made it, for us.
                drop(unsafe { OwnedFd::from_raw_fd(file) });
                Ok(true)
            }
            Err(error) if error.is_device_lost() => Err(error),
            Err(error) => {
                tracing::debug!(%error, "the driver makes no dma-buf of this memory");
                Ok(false)
            }
        }
    }

    /// An older driver does not know what is asked.
    fn offers(&self, attribute: i32) -> bool {
        self.attribute(attribute).is_ok_and(|offered| offered != 0)
    }

    /// How what network cards write comes to be there for kernels and copies that are submitted later.
    pub fn remote_writes(&self) -> Result<RemoteWrites, CudaError> {
        const GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS: i32 = 117;
        const GPU_DIRECT_RDMA_WRITES_ORDERING: i32 = 118;
        const BY_HOST: u32 = 1;
        if self.attribute(GPU_DIRECT_RDMA_WRITES_ORDERING)? >= TO_OWNER {
            return Ok(RemoteWrites::Ordered);
        }
        let options = self.attribute(GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS)?;
        Ok(if options & BY_HOST != 0 { RemoteWrites::Flushed } else { RemoteWrites::Unordered })
    }

    /// Whatever network cards have written into this GPU's memory until now is there for what is
    /// submitted from now on. To be called where `RemoteWrites` are `Flushed`.
    pub fn flush_remote_writes(&self) -> Result<(), CudaError> {
        let _current = self.enter()?;
        // SAFETY: it takes no pointers, and the context is current.
        unsafe { self.driver().flush_remote_writes(CURRENT_CONTEXT, TO_OWNER) }
    }
}
