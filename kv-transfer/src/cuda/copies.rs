//! Copies on a stream: begun in order, waited for together.

use std::sync::Arc;

use super::{CudaError, CudaMemory, Device};
use crate::plan::CopyOp;
use cuda_driver::Lane;
use cuda_driver::{DevicePointer, Handle};

/// Copies planned between two pools of this process. Waits until the last one has ended.
pub(crate) fn copy_between(
    from: &CudaMemory,
    to: &CudaMemory,
    ops: &[CopyOp],
) -> Result<(), CudaError> {
    let mut copies = Copies::begin(to.device())?;
    copies.after(from.written())?;
    copies.after(to.written())?;
    let of = if from.device() == to.device() {
        None
    } else {
        to.device().reaches(from.device())?;
        Some(&**from.device())
    };
    for op in ops {
        let (to, from) = (to.run(op.destination, op.blocks), from.run(op.source, op.blocks));
        // SAFETY: both runs are in pools that outlive the copies, which are waited for below or by
        // dropping them. Whoever planned the operations has the right to read and write the blocks.
        unsafe { copies.on_devices(to.start, from.start, of, to.end - to.start) }?;
    }
    copies.settle()
}

/// Copies on a stream of their own. Dropping them waits until the last one has ended, because what
/// they read and write is then given to others.
pub(super) struct Copies {
    held: Arc<Held>,
    is_settled: bool,
}

/// A stream in use. Who waits for it on another thread shares it.
struct Held {
    device: Arc<Device>,
    lane: Lane,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.device.put_lane(self.lane);
    }
}

impl Held {
    /// Waits for what was on the stream when its event was recorded.
    fn wait(&self) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the event lives as long as this.
        unsafe { self.device.driver().wait_for_event(self.lane.done) }
    }
}

impl Copies {
    /// None yet. They will run on this device's stream.
    pub(super) fn begin(device: &Arc<Device>) -> Result<Self, CudaError> {
        let held = Held { device: device.clone(), lane: device.take_lane()? };
        Ok(Self { held: Arc::new(held), is_settled: true })
    }

    /// What is begun from now on waits for what the event stands for now.
    pub(super) fn after(&mut self, event: Handle) -> Result<(), CudaError> {
        let Held { device, lane } = &*self.held;
        let _current = device.enter()?;
        self.is_settled = false;
        // SAFETY: stream and event live; an event that was never recorded is no event to wait for.
        unsafe { device.driver().stream_waits(lane.stream, event, 0) }
    }

    /// Copies from memory of another device, or of this one and what is mapped into it.
    ///
    /// Many small blocks are many calls of a few microseconds each: a kernel that gathers them in
    /// one launch belongs here.
    ///
    /// # Safety
    /// The bytes are there until this is settled; nobody writes to the source's, and nobody else
    /// uses the destination's.
    pub(super) unsafe fn on_devices(
        &mut self,
        to: DevicePointer,
        from: DevicePointer,
        from_device: Option<&Device>,
        bytes: u64,
    ) -> Result<(), CudaError> {
        let Held { device, lane } = &*self.held;
        let (_current, bytes) = (device.enter()?, bytes as usize);
        self.is_settled = false;
        // SAFETY: the caller's promise; the contexts live.
        unsafe {
            match from_device {
                None => device.driver().copy_within(to, from, bytes, lane.stream),
                Some(other) => device.driver().copy_between_peers(
                    to,
                    device.context(),
                    from,
                    other.context(),
                    bytes,
                    lane.stream,
                ),
            }
        }
    }

    /// Copies pinned bytes to the device.
    ///
    /// # Safety
    /// As for `on_devices`.
    pub(super) unsafe fn send(&mut self, to: DevicePointer, from: &[u8]) -> Result<(), CudaError> {
        let Held { device, lane } = &*self.held;
        let _current = device.enter()?;
        self.is_settled = false;
        let (from, bytes) = (from.as_ptr().cast(), from.len());
        // SAFETY: the caller's promise.
        unsafe { device.driver().copy_to_device(to, from, bytes, lane.stream) }
    }

    /// Copies from the device to pinned bytes.
    ///
    /// # Safety
    /// As for `on_devices`.
    pub(super) unsafe fn fetch(
        &mut self,
        to: &mut [u8],
        from: DevicePointer,
    ) -> Result<(), CudaError> {
        let Held { device, lane } = &*self.held;
        let _current = device.enter()?;
        self.is_settled = false;
        let (to, bytes) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: the caller's promise.
        unsafe { device.driver().copy_to_host(to, from, bytes, lane.stream) }
    }

    fn record(&self) -> Result<(), CudaError> {
        let Held { device, lane } = &*self.held;
        let _current = device.enter()?;
        // SAFETY: both live.
        unsafe { device.driver().record_event(lane.done, lane.stream) }
    }

    /// Waits, blocking this thread, until all copies so far have ended. Errors: one of them failed.
    pub(super) fn settle(&mut self) -> Result<(), CudaError> {
        if !self.is_settled {
            self.record()?;
            self.held.wait()?;
            self.is_settled = true;
        }
        Ok(())
    }

    /// Waits until all copies so far have ended, on a thread that may block.
    pub(super) async fn settled(&mut self) -> Result<(), CudaError> {
        if !self.is_settled {
            self.record()?;
            let held = self.held.clone();
            let waited = tokio::task::spawn_blocking(move || held.wait()).await;
            // A runtime that is shutting down runs nothing more.
            waited.unwrap_or_else(|_| self.held.wait())?;
            self.is_settled = true;
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let Held { device, lane } = &*self.held;
        let _current = device.enter();
        // SAFETY: the stream lives. An error means that the device is lost and copies nothing more.
        let _waited = unsafe { device.driver().wait_for_stream(lane.stream) };
    }
}
