//! A worker's pool as its agent has it: of the host, or of a GPU.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cuda_driver::{CudaError, Device, Driver, IpcHandle, Mapping, RemoteWrites};
use memmap2::{MmapMut, MmapOptions};

use crate::cuda::GRAIN_BYTES;

/// Why there is none: whether another try is in vain, and a sentence.
pub type NoMemory = (bool, String);

/// Memory for UCX to read and write. It lives as long as the process.
pub enum PoolMemory {
    /// Of the host.
    Host(MmapMut),
    /// Of a GPU, with its context current on this thread from then on, as UCX's use of CUDA wants it.
    Gpu {
        /// On which it is.
        device: Arc<Device>,
        /// Where.
        mapping: Mapping,
        /// Of all blocks.
        bytes: u64,
        /// Whether the GPU has to be asked to settle what network cards write.
        is_flushed: bool,
    },
}

impl PoolMemory {
    /// Maps a file of this size.
    pub fn of_file(file: &OwnedFd, bytes: u64) -> Result<Self, NoMemory> {
        let unmapped =
            |why: &dyn std::fmt::Display| (false, format!("cannot map the KV pool: {why}"));
        let length = usize::try_from(bytes).map_err(|error| unmapped(&error))?;
        // SAFETY: the file is sealed at its size. Others write to it, which is why nothing here looks
        // at the bytes: UCX moves them.
        let mapped = unsafe { MmapOptions::new().len(length).map_mut(file) };
        mapped.map(Self::Host).map_err(|error| unmapped(&error))
    }

    /// Maps a GPU's memory. Errors: the driver's; network cards would not get at it, and UCX would
    /// then move blocks slower than the tcp way does, without a word.
    pub fn of_gpu(ordinal: u32, handle: [u8; 64], bytes: u64) -> Result<Self, NoMemory> {
        let failed = |error: CudaError| (false, format!("the KV pool's GPU: {error}"));
        let device = Driver::load().and_then(|driver| Device::open(&driver, ordinal));
        let device = device.map_err(failed)?;
        let mapping = Mapping::open(&device, IpcHandle(handle)).map_err(failed)?;
        // The whole allocation is there.
        let whole = (bytes as usize).next_multiple_of(GRAIN_BYTES);
        if !device.opens_to_rdma(mapping.address(), whole).map_err(failed)? {
            return Err((
                true,
                "network cards do not get at this GPU's memory: the driver makes no dma-buf of it, \
                 and the module nvidia_peermem is not loaded"
                    .into(),
            ));
        }
        let is_flushed = match device.remote_writes().map_err(failed)? {
            RemoteWrites::Ordered => false,
            RemoteWrites::Flushed => true,
            RemoteWrites::Unordered => {
                let why =
                    "what network cards write into this GPU's memory is in no order that holds";
                return Err((true, why.into()));
            }
        };
        std::mem::forget(device.enter().map_err(failed)?);
        Ok(Self::Gpu { device, mapping, bytes, is_flushed })
    }

    /// Where it begins: an address, of which only UCX makes use.
    pub fn start(&mut self) -> *mut u8 {
        match self {
            Self::Host(mapping) => mapping.as_mut_ptr(),
            Self::Gpu { mapping, .. } => {
                std::ptr::with_exposed_provenance_mut(mapping.address() as usize)
            }
        }
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Host(mapping) => mapping.len() as u64,
            Self::Gpu { bytes, .. } => *bytes,
        }
    }

    /// Whether it is a GPU's.
    pub fn is_on_gpu(&self) -> bool {
        matches!(self, Self::Gpu { .. })
    }

    /// What has come into it is there for whoever uses it from now on.
    pub fn settle(&self) -> Result<(), String> {
        match self {
            Self::Gpu { device, is_flushed: true, .. } => {
                device.flush_remote_writes().map_err(|error| error.to_string())
            }
            Self::Host(_) | Self::Gpu { .. } => Ok(()),
        }
    }
}
