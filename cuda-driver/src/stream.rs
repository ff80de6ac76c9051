//! Work that runs on a GPU one piece after the other.

use std::sync::Arc;

use crate::driver::STREAM_NON_BLOCKING;
use crate::{CudaError, Device, DevicePointer, Graph, Handle};

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: what other threads do meanwhile is theirs.
const CAPTURE_OF_THIS_THREAD: u32 = 1;

/// A stream of the highest priority: what waits for a model's next token goes before copies.
pub struct Stream {
    device: Arc<Device>,
    handle: Handle,
}

impl Stream {
    /// With nothing on it.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let _current = device.enter()?;
        let (mut handle, priority) = (Handle::NULL, device.highest_priority());
        // SAFETY: the pointer is valid.
        unsafe { device.driver.create_stream(&mut handle, STREAM_NON_BLOCKING, priority) }?;
        Ok(Self { device: device.clone(), handle })
    }

    /// As the driver knows it (`CUstream`).
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Waits until all of it has run. Errors: some of it failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the stream lives.
        unsafe { self.device.driver.wait_for_stream(self.handle) }
    }

    /// What comes after this waits for what the event stands for now.
    ///
    /// # Safety
    /// The event (`CUevent`) lives until that has run.
    pub unsafe fn after(&self, event: Handle) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the stream lives, and the event by the caller's promise.
        unsafe { self.device.driver.stream_waits(self.handle, event, 0) }
    }

    /// Copies bytes to the device.
    ///
    /// # Safety
    /// The bytes are pinned, stay as they are until the copy has run, and there is room for them.
    pub unsafe fn send(&self, to: DevicePointer, from: &[u8]) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        let (from, bytes) = (from.as_ptr().cast(), from.len());
        // SAFETY: the caller's promise.
        unsafe { self.device.driver.copy_to_device(to, from, bytes, self.handle) }
    }

    /// Copies bytes from the device.
    ///
    /// # Safety
    /// The bytes are pinned, nobody looks at them until the copy has run, and as many are there.
    pub unsafe fn fetch(&self, to: &mut [u8], from: DevicePointer) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        let (to, bytes) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: the caller's promise.
        unsafe { self.device.driver.copy_to_host(to, from, bytes, self.handle) }
    }

    /// Copies bytes within the device's memory.
    ///
    /// # Safety
    /// Both are there until the copy has run, and do not overlap.
    pub unsafe fn copy(
        &self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the caller's promise.
        unsafe { self.device.driver.copy_within(to, from, bytes, self.handle) }
    }

    /// What `submit` puts on this stream, kept to be run again and again instead of being run now.
    /// Errors: those of `submit`, or the driver's where something cannot be kept.
    pub fn capture<E: From<CudaError>>(
        &self,
        submit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let driver = &self.device.driver;
        let _current = self.device.enter()?;
        // SAFETY: the stream lives.
        unsafe { driver.begin_capture(self.handle, CAPTURE_OF_THIS_THREAD) }?;
        let submitted = submit();
        let mut graph = Handle::NULL;
        // SAFETY: the stream is being captured, and must not stay so.
        let ended = unsafe { driver.end_capture(self.handle, &mut graph) };
        let graph = ended.map(|()| Graph::of(&self.device, graph));
        submitted?;
        Ok(graph??)
    }

    /// Runs what was captured.
    ///
    /// # Safety
    /// What it works with is there until it has run, and nobody else uses it meanwhile.
    pub unsafe fn run(&self, graph: &Graph) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: both live, and the rest by the caller's promise.
        unsafe { self.device.driver.launch_graph(graph.executable(), self.handle) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: nobody else has it; the driver lets what is on it end. Errors are of no use.
        let _ended = unsafe {
            let waited = self.device.driver.wait_for_stream(self.handle);
            (waited, self.device.driver.destroy_stream(self.handle))
        };
    }
}
