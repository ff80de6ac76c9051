//! Copies on a stream: begun in order, waited for together.

use std::sync::Arc;

use cuda_driver::{DevicePointer, Function, Handle, Lane, Pinned};
use cuda_kernels::{COPIED_BLOCKS_MAX, CopyBlocks};

use super::{CudaError, CudaMemory, Device};
use crate::plan::CopyOp;

/// Copies planned between two pools of this process. Waits until the last one has ended.
pub(crate) fn copy_between(
    from: &CudaMemory,
    to: &CudaMemory,
    ops: &[CopyOp],
) -> Result<(), CudaError> {
    let mut copies = Copies::begin(to.device())?;
    copies.after(from.written())?;
    copies.after(to.written())?;
    let (device, is_reached) = match from.device() == to.device() {
        true => (None, true),
        false => (Some(&**from.device()), to.device().reaches(from.device())?),
    };
    let source = Source { base: from.base(), device, is_reached };
    for op in ops {
        // Panics where there are no such blocks.
        let _in_the_pool = from.run(op.source, op.blocks);
    }
    // SAFETY: both pools outlive the copies, which are waited for below or by dropping them, and have
    // the blocks. Whoever planned the operations has the right to read and write them.
    unsafe { copies.between_pools(to, &source, ops) }?;
    copies.settle()
}

/// Operations of so many bytes are copies of the driver's, which run at the memory's speed; more of
/// smaller ones are one launch.
const SMALL_BYTES: usize = 1 << 20;
const FEW_OPERATIONS: usize = 4;

/// A pool that is read.
pub(super) struct Source<'a> {
    /// Its first block.
    pub base: DevicePointer,
    /// Its device, where that is another one of this process.
    pub device: Option<&'a Device>,
    /// Whether the destination's device reads its memory.
    pub is_reached: bool,
}

/// Copies on a stream of their own. Dropping them waits until the last one has ended, because what
/// they read and write is then given to others.
pub(super) struct Copies {
    held: Arc<Held>,
    is_settled: bool,
    /// What kernels read of the host while they run.
    read: Vec<Pinned>,
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
        Ok(Self { held: Arc::new(held), is_settled: true, read: Vec::new() })
    }

    /// What is begun from now on waits for what the event stands for now.
    pub(super) fn after(&mut self, event: Handle) -> Result<(), CudaError> {
        let Held { device, lane } = &*self.held;
        let _current = device.enter()?;
        self.is_settled = false;
        // SAFETY: stream and event live; an event that was never recorded is no event to wait for.
        unsafe { device.driver().stream_waits(lane.stream, event, 0) }
    }

    /// Copies blocks into a pool of this device.
    ///
    /// # Safety
    /// Both pools have the blocks until this is settled; nobody writes to the source's, and nobody
    /// else uses the destination's.
    pub(super) unsafe fn between_pools(
        &mut self,
        to: &CudaMemory,
        source: &Source<'_>,
        ops: &[CopyOp],
    ) -> Result<(), CudaError> {
        let block_bytes = to.block_bytes();
        let blocks: usize = ops.iter().map(|op| op.blocks as usize).sum();
        let is_small = ops.len() > FEW_OPERATIONS && blocks * block_bytes < SMALL_BYTES * ops.len();
        if let (Some(copier), true) = (to.copier(), is_small && source.is_reached)
            // SAFETY: the caller's promise.
            && unsafe { self.by_kernel(copier, to, source.base, ops) }?
        {
            return Ok(());
        }
        for op in ops {
            let to = to.run(op.destination, op.blocks);
            let from = source.base + u64::from(op.source) * block_bytes as u64;
            // SAFETY: the caller's promise.
            unsafe { self.on_devices(to.start, from, source.device, to.end - to.start) }?;
        }
        Ok(())
    }

    /// The same by one launch, or by few. False: the kernel does not copy such blocks.
    ///
    /// # Safety
    /// As for `between_pools`.
    unsafe fn by_kernel(
        &mut self,
        copier: &Function,
        to: &CudaMemory,
        from: DevicePointer,
        ops: &[CopyOp],
    ) -> Result<bool, CudaError> {
        let pairs: Vec<[u32; 2]> = ops
            .iter()
            .flat_map(|op| (0..op.blocks).map(|next| [op.source + next, op.destination + next]))
            .collect();
        let device = self.held.device.clone();
        for pairs in pairs.chunks(COPIED_BLOCKS_MAX) {
            let bytes: Vec<u8> =
                pairs.as_flattened().iter().flat_map(|block| block.to_ne_bytes()).collect();
            let mut read = Pinned::take(&device, bytes.len())?;
            let room = read.slice_mut(0..bytes.len());
            room.copy_from_slice(&bytes);
            let copy = CopyBlocks {
                to: to.base(),
                from,
                // A GPU sees pinned memory where the host does.
                pairs: room.as_ptr() as u64,
                count: pairs.len(),
                block_bytes: to.block_bytes(),
            };
            let Ok(launch) = copy.launch() else { return Ok(false) };
            self.is_settled = false;
            self.read.push(read);
            launch.with_parameters(|parameters| {
                let (stream, shared) = (self.held.lane.stream, launch.shared_bytes);
                // SAFETY: these are the kernel's parameters; what they point to is there by the
                // caller's promise, and the pairs until this is settled.
                unsafe { copier.launch(stream, launch.grid, launch.threads, shared, parameters) }
            })?;
        }
        Ok(true)
    }

    /// Copies from memory of another device, or of this one and what it reaches.
    ///
    /// # Safety
    /// The bytes are there until this is settled; nobody writes to the source's, and nobody else
    /// uses the destination's.
    unsafe fn on_devices(
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
            self.read.clear();
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
            self.read.clear();
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
