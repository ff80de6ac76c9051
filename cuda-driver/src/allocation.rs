//! Memory of a GPU.

use std::sync::Arc;

use crate::{CudaError, Device, DevicePointer, IpcHandle};

/// Some bytes of a GPU's memory, given back on drop. From the driver's plain allocator, because only
/// its memory can be lent to other processes.
pub struct Allocation {
    device: Arc<Device>,
    address: DevicePointer,
    bytes: usize,
}

impl Allocation {
    /// Allocates `bytes` bytes (one at least) of any content, at a multiple of 256. Errors: they are
    /// not there.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let (mut address, bytes) = (0, bytes.max(1));
        // SAFETY: the pointer is valid.
        unsafe { device.driver.allocate(&mut address, bytes) }?;
        Ok(Self { device: device.clone(), address, bytes })
    }

    /// Where it begins.
    pub fn address(&self) -> DevicePointer {
        self.address
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What another process needs to map it. Errors: the driver does not share it.
    pub fn export(&self) -> Result<IpcHandle, CudaError> {
        let _current = self.device.enter()?;
        let mut handle = IpcHandle([0; 64]);
        // SAFETY: the pointer is valid, and the memory lives.
        unsafe { self.device.driver.ipc_memory(&mut handle, self.address) }?;
        Ok(handle)
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: it is ours; whoever works with it holds it. The driver waits for what uses it. An
        // error is of no use: what is lost is gone.
        let _freed = unsafe { self.device.driver.free(self.address) };
    }
}
