//! Blocks of GPUs on their way through the host: over the tcp way.

use std::ops::Range;
use std::sync::Arc;

use super::copies::Copies;
use super::{CudaError, CudaMemory};
use crate::plan::CopyOp;
use crate::tcp::wire::Run;
use cuda_driver::Pinned;

/// Received bytes on their way into a pool: the next ones come while the last ones are copied.
pub(crate) struct Landing {
    // First, so that they have ended when the buffer is given to others.
    copies: Copies,
    buffer: Pinned,
    memory: Arc<CudaMemory>,
    /// Bytes of the buffer from which copies are under way.
    used: usize,
    /// What was handed out last.
    room: Range<usize>,
}

impl Landing {
    pub(crate) fn begin(memory: &Arc<CudaMemory>) -> Result<Self, CudaError> {
        let buffer = Pinned::take(memory.device(), 1)?;
        let mut copies = Copies::begin(memory.device())?;
        copies.after(memory.written())?;
        Ok(Self { copies, buffer, memory: memory.clone(), used: 0, room: 0..0 })
    }

    /// Where the bytes of an operation are to be put.
    pub(crate) async fn room_for(&mut self, op: &CopyOp) -> Result<&mut [u8], CudaError> {
        let bytes = op.blocks as usize * self.memory.block_bytes();
        if self.used + bytes > self.buffer.len() {
            self.copies.settled().await?;
            self.used = 0;
        }
        if bytes > self.buffer.len() {
            self.buffer = Pinned::take(self.memory.device(), bytes)?;
        }
        self.room = self.used..self.used + bytes;
        Ok(self.buffer.slice_mut(self.room.clone()))
    }

    /// The operation's bytes are where `room_for` said: begins to copy them into the pool.
    ///
    /// # Safety
    /// Nobody else uses the operation's destination until this is settled or dropped.
    pub(crate) unsafe fn land(&mut self, op: &CopyOp) -> Result<(), CudaError> {
        let to = self.memory.run(op.destination, op.blocks).start;
        // SAFETY: the run is in the pool, which this holds; exclusive by the caller's promise. The
        // bytes stay as they are until the copies are settled (`used`).
        unsafe { self.copies.send(to, self.buffer.slice(self.room.clone())) }?;
        self.used = self.room.end;
        Ok(())
    }

    /// Waits until everything is in the pool.
    pub(crate) async fn settled(&mut self) -> Result<(), CudaError> {
        self.copies.settled().await
    }
}

/// Blocks of a pool on their way out.
pub(crate) struct Staging<'a> {
    // First, so that they have ended when the buffer is given to others.
    copies: Copies,
    buffer: Pinned,
    memory: &'a CudaMemory,
}

impl<'a> Staging<'a> {
    pub(crate) fn begin(memory: &'a CudaMemory) -> Result<Self, CudaError> {
        let buffer = Pinned::take(memory.device(), 1)?;
        let mut copies = Copies::begin(memory.device())?;
        copies.after(memory.written())?;
        Ok(Self { copies, buffer, memory })
    }

    /// The bytes of all runs, one after the other.
    ///
    /// # Safety
    /// Nobody writes to these blocks until this is done or dropped.
    pub(crate) async unsafe fn bytes_of(&mut self, runs: &[Run]) -> Result<&[u8], CudaError> {
        let run_bytes = |run: &Run| run.blocks as usize * self.memory.block_bytes();
        let bytes: usize = runs.iter().map(run_bytes).sum();
        if bytes > self.buffer.len() {
            self.buffer = Pinned::take(self.memory.device(), bytes)?;
        }
        let mut at = 0;
        for run in runs {
            let part = self.buffer.slice_mut(at..at + run_bytes(run));
            at += part.len();
            // SAFETY: the run is in the pool; unwritten by the caller's promise; settled below.
            unsafe { self.copies.fetch(part, self.memory.run(run.first, run.blocks).start) }?;
        }
        self.copies.settled().await?;
        Ok(self.buffer.slice(0..bytes))
    }
}
