//! Work that is submitted as one.

use std::sync::Arc;

use crate::{CudaError, Device, Handle};

/// What a stream captured, ready to run.
pub struct Graph {
    device: Arc<Device>,
    executable: Handle,
}

impl Graph {
    /// Of a captured `CUgraph`, which it takes.
    pub(crate) fn of(device: &Arc<Device>, graph: Handle) -> Result<Self, CudaError> {
        let mut executable = Handle::NULL;
        // SAFETY: the pointer is valid, and the graph is ours.
        let made = unsafe {
            let made = device.driver.instantiate_graph(&mut executable, graph, 0);
            let _destroyed = device.driver.destroy_graph(graph);
            made
        };
        made.map(|()| Self { device: device.clone(), executable })
    }

    pub(crate) fn executable(&self) -> Handle {
        self.executable
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: nobody else has it; a run of it goes on. Errors are of no use.
        let _destroyed = unsafe { self.device.driver.destroy_executable(self.executable) };
    }
}
