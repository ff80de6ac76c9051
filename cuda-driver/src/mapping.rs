//! Memory that another process of this host allocated on a GPU.

use std::sync::Arc;

use crate::driver::IPC_LAZY_PEER_ACCESS;
use crate::{CudaError, Device, DevicePointer, IpcHandle};

/// Another process's allocation, as this one sees it until it is dropped. It is there for as long as
/// that process keeps it.
pub struct Mapping {
    device: Arc<Device>,
    address: DevicePointer,
}

impl Mapping {
    /// Maps what another process exported, for this GPU: its own memory, or that of one that it
    /// reaches. Errors: it does not, or the handle is none any more.
    pub fn open(device: &Arc<Device>, handle: IpcHandle) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid; a handle that is none is the driver's to refuse.
        unsafe { device.driver.ipc_open_memory(&mut address, handle, IPC_LAZY_PEER_ACCESS) }?;
        Ok(Self { device: device.clone(), address })
    }

    /// Where it begins.
    pub fn address(&self) -> DevicePointer {
        self.address
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: what works with it holds it. An error is of no use.
        let _closed = unsafe { self.device.driver.ipc_close_memory(self.address) };
    }
}
