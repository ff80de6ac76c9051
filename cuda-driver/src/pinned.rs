//! Host memory that GPUs copy from and to: pinned, and kept, because pinning is slow.

use std::ops::Range;
use std::sync::Arc;

use crate::driver::HOST_PORTABLE;
use crate::{CudaError, Device};

/// Bytes of a buffer, unless more are asked for: some frames of what comes by a network.
const BUFFER_BYTES: usize = 4 << 20;

/// Pinned memory that nobody uses.
pub(crate) struct Buffer {
    pub start: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory, which whoever has the buffer has to itself.
unsafe impl Send for Buffer {}

/// Pinned memory in use; kept for others when this is dropped.
pub struct Pinned {
    device: Arc<Device>,
    /// Some, until dropped.
    buffer: Option<Buffer>,
}

// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// At least so many bytes, of any content.
    pub fn take(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        let mut kept = device.buffers.lock();
        let fitting = kept.iter().position(|buffer| buffer.bytes >= bytes);
        let buffer = fitting.map(|index| kept.swap_remove(index));
        drop(kept);
        let buffer = match buffer {
            Some(buffer) => buffer,
            None => allocate(device, bytes.max(BUFFER_BYTES))?,
        };
        Ok(Self { device: device.clone(), buffer: Some(buffer) })
    }

    fn buffer(&self) -> &Buffer {
        self.buffer.as_ref().expect("there until dropped")
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty)] // no buffer is empty
    pub fn len(&self) -> usize {
        self.buffer().bytes
    }

    /// A part of it. The caller knows that no copy into this part is under way.
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len(), "within the buffer");
        // SAFETY: in bounds by the assertion; initialised by whoever fills it, and any bytes will do.
        unsafe { std::slice::from_raw_parts(self.buffer().start.add(range.start), range.len()) }
    }

    /// A part of it. The caller knows that no copy from or into this part is under way.
    pub fn slice_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len(), "within the buffer");
        let start = self.buffer().start;
        // SAFETY: as above, and `&mut self` has it to itself.
        unsafe { std::slice::from_raw_parts_mut(start.add(range.start), range.len()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.device.keep_buffer(buffer);
        }
    }
}

fn allocate(device: &Device, bytes: usize) -> Result<Buffer, CudaError> {
    let _current = device.enter()?;
    let mut start = std::ptr::null_mut();
    // SAFETY: the pointer is valid.
    unsafe { device.driver.allocate_host(&mut start, bytes, HOST_PORTABLE) }?;
    let start = start.cast::<u8>();
    // SAFETY: the driver has just given these bytes to us. Zeroed, so that they have values.
    unsafe { start.write_bytes(0, bytes) };
    Ok(Buffer { start, bytes })
}
