//! The memory that KV blocks lie in: the host's, or a GPU's.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::KvLayout;
use crate::cuda::{self, CudaError, CudaMemory};
use crate::plan::{BlockCopy, CopyOp, Extent, PlanError, plan};

/// A fixed number of equal blocks of host memory, one after the other from a page's start, zeroed,
/// and backed by real memory only where touched. Which block belongs to whom is the block pool's
/// business, so every access is unsafe and says whom it relies on.
pub struct HostMemory {
    base: *mut u8,
    block_bytes: usize,
    blocks: usize,
    _mapping: MmapMut,
    /// Of memory that other processes may map.
    file: Option<OwnedFd>,
}

// SAFETY: `base` points into a mapping owned by this struct; all access goes through the unsafe
// functions below, whose callers promise not to race. Who is given the file keeps to their promises
// too: it writes only for a writer, and reads only what is leased.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Maps room for `blocks` blocks. Errors: the system's, when the address space is refused.
    pub fn new(blocks: usize, block_bytes: usize) -> io::Result<Self> {
        let bytes = pool_bytes(blocks, block_bytes)?;
        let mut mapping = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
        let base = mapping.as_mut_ptr();
        Ok(Self { base, block_bytes, blocks, _mapping: mapping, file: None })
    }

    /// As `new`, in memory that can be given to another process, which neither can shrink.
    pub fn shared(blocks: usize, block_bytes: usize) -> io::Result<Self> {
        let bytes = pool_bytes(blocks, block_bytes)?;
        let file = memfd_create("kv-pool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, bytes as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // SAFETY: the file keeps its size; for its bytes the same promises hold as for private ones.
        let mut mapping = unsafe { MmapOptions::new().len(bytes).map_mut(&file) }?;
        let base = mapping.as_mut_ptr();
        Ok(Self { base, block_bytes, blocks, _mapping: mapping, file: Some(file) })
    }

    /// What another process can map, if the memory is shared.
    pub fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    fn block_start(&self, block: u32) -> *mut u8 {
        assert!((block as usize) < self.blocks, "block {block} of a pool of {}", self.blocks);
        // SAFETY: in bounds by the assertion; the mapping spans blocks * block_bytes.
        unsafe { self.base.add(block as usize * self.block_bytes) }
    }

    /// The bytes of `blocks` blocks from `first` on.
    ///
    /// # Safety
    /// Nobody writes to these blocks while the slice lives.
    pub unsafe fn read_blocks(&self, first: u32, blocks: u32) -> &[u8] {
        let bytes = self.bytes_from(first, blocks);
        // SAFETY: in bounds by the assertions; unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.block_start(first), bytes) }
    }

    /// A mutable view of `blocks` blocks from `first` on.
    ///
    /// # Safety
    /// Nobody else reads or writes these blocks while the slice lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn write_blocks(&self, first: u32, blocks: u32) -> &mut [u8] {
        let bytes = self.bytes_from(first, blocks);
        // SAFETY: in bounds by the assertions; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.block_start(first), bytes) }
    }

    fn bytes_from(&self, first: u32, blocks: u32) -> usize {
        let behind = (first as usize).saturating_add(blocks as usize);
        assert!(behind <= self.blocks, "blocks up to {behind} of a pool of {}", self.blocks);
        blocks as usize * self.block_bytes
    }

    /// The bytes of one block.
    ///
    /// # Safety
    /// Nobody writes to this range of the block while the slice lives.
    pub unsafe fn read(&self, block: u32, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset + bytes <= self.block_bytes, "a read past the end of a block");
        // SAFETY: in bounds by the assertions; unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.block_start(block).add(offset), bytes) }
    }

    /// A mutable view of a part of one block.
    ///
    /// # Safety
    /// Nobody else reads or writes this range of the block while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write(&self, block: u32, offset: usize, bytes: usize) -> &mut [u8] {
        assert!(offset + bytes <= self.block_bytes, "a write past the end of a block");
        // SAFETY: in bounds by the assertions; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.block_start(block).add(offset), bytes) }
    }
}

fn pool_bytes(blocks: usize, block_bytes: usize) -> io::Result<usize> {
    let bytes = blocks.checked_mul(block_bytes).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| io::Error::other("the KV pool's size overflows"))
}

/// Where a pool's blocks lie. Clones are the same pool.
#[derive(Clone)]
pub enum KvMemory {
    /// In this process.
    Host(Arc<HostMemory>),
    /// On a GPU that this process uses.
    Cuda(Arc<CudaMemory>),
}

impl From<Arc<HostMemory>> for KvMemory {
    fn from(memory: Arc<HostMemory>) -> Self {
        Self::Host(memory)
    }
}

impl From<Arc<CudaMemory>> for KvMemory {
    fn from(memory: Arc<CudaMemory>) -> Self {
        Self::Cuda(memory)
    }
}

impl KvMemory {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        match self {
            Self::Host(memory) => memory.blocks(),
            Self::Cuda(memory) => memory.blocks(),
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        match self {
            Self::Host(memory) => memory.block_bytes(),
            Self::Cuda(memory) => memory.block_bytes(),
        }
    }

    /// Whether it is the same pool.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(ours), Self::Host(theirs)) => Arc::ptr_eq(ours, theirs),
            (Self::Cuda(ours), Self::Cuda(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }

    /// Waits until what was submitted to a GPU that writes or reads blocks has been done: a network
    /// card does not wait for it. Errors: the GPU's.
    pub(crate) async fn settled(&self) -> Result<(), CudaError> {
        match self {
            Self::Host(_) => Ok(()),
            Self::Cuda(memory) => memory.settled().await,
        }
    }

    /// The bytes of `blocks` blocks from `first` on, wherever they lie; of a GPU's they are copied.
    /// Errors: the GPU's.
    ///
    /// # Safety
    /// Nobody writes to these blocks while the bytes live.
    pub unsafe fn bytes_of(&self, first: u32, blocks: u32) -> Result<Cow<'_, [u8]>, CudaError> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Host(memory) => Ok(Cow::Borrowed(memory.read_blocks(first, blocks))),
                Self::Cuda(memory) => memory.read_blocks(first, blocks).map(Cow::Owned),
            }
        }
    }

    /// Overwrites blocks from `first` on, as many as `bytes` are.
    ///
    /// # Safety
    /// Nobody else reads or writes these blocks meanwhile.
    pub(crate) unsafe fn overwrite(&self, first: u32, bytes: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Host(memory) => {
                    let blocks = bytes.len() / memory.block_bytes();
                    memory.write_blocks(first, blocks as u32).copy_from_slice(bytes);
                    Ok(())
                }
                Self::Cuda(memory) => memory.write_blocks(first, bytes),
            }
        }
    }
}

/// The right to fill certain blocks of a pool, held by one reservation.
pub struct BlockWriter {
    memory: KvMemory,
    layout: KvLayout,
    blocks: Vec<u32>,
}

impl BlockWriter {
    /// # Safety
    /// Until the writer is dropped, nobody else reads or writes `blocks`, and `blocks` has no
    /// duplicates.
    pub unsafe fn new(memory: impl Into<KvMemory>, layout: KvLayout, blocks: Vec<u32>) -> Self {
        let memory = memory.into();
        assert_eq!(memory.block_bytes(), layout.block_bytes(), "the memory has this layout");
        Self { memory, layout, blocks }
    }

    /// What the blocks' bytes must mean.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// How many blocks may be filled.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is nothing to fill.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Where they lie.
    pub fn memory(&self) -> &KvMemory {
        &self.memory
    }

    /// Overwrites the `index`th block. Errors: the pool is a GPU's, which did not do it.
    pub fn fill(&mut self, index: usize, bytes: &[u8]) -> Result<(), CudaError> {
        assert_eq!(bytes.len(), self.memory.block_bytes(), "one block");
        // SAFETY: this writer has these blocks to itself, and `&mut self` itself to this call.
        unsafe { self.memory.overwrite(self.blocks[index], bytes) }
    }

    /// What is to be copied, from blocks of a pool like `source`; `copies` name their destinations
    /// by their index here.
    pub(crate) fn plan(
        &self,
        source: Extent,
        copies: &[BlockCopy],
    ) -> Result<Vec<CopyOp>, PlanError> {
        let in_pool = |copy: &BlockCopy| {
            let block = self.blocks.get(copy.destination).ok_or(PlanError::Destination {
                block: copy.destination,
                blocks: self.blocks.len(),
            });
            block.map(|block| BlockCopy { destination: *block as usize, ..*copy })
        };
        let copies = copies.iter().map(in_pool).collect::<Result<Vec<_>, _>>()?;
        let blocks = self.memory.blocks();
        plan(source, Extent { layout: &self.layout, blocks }, &copies)
    }

    /// What is to be copied from a pool that only its owner can see: how many blocks it has is its
    /// own to check.
    pub(crate) fn plan_from_afar(&self, copies: &[BlockCopy]) -> Result<Vec<CopyOp>, PlanError> {
        self.plan(Extent { layout: &self.layout, blocks: u32::MAX as usize }, copies)
    }

    /// Overwrites the destination of a copy that was planned for this writer.
    pub(crate) fn put(&mut self, op: &CopyOp, bytes: &[u8]) -> Result<(), CudaError> {
        // SAFETY: operations name blocks of this writer only (`plan`), which it has to itself, and
        // `&mut self` itself to the caller.
        unsafe { self.memory.overwrite(op.destination, bytes) }
    }

    /// Takes bytes that come one operation after the other.
    pub(crate) fn receive(&mut self) -> Result<Receiving<'_>, CudaError> {
        let landing = match &self.memory {
            KvMemory::Host(_) => None,
            KvMemory::Cuda(memory) => Some(cuda::Landing::begin(memory)?),
        };
        Ok(Receiving { writer: self, landing })
    }
}

/// Bytes on their way into a writer's blocks: straight, or by way of memory that its GPU copies from.
pub(crate) struct Receiving<'a> {
    writer: &'a mut BlockWriter,
    landing: Option<cuda::Landing>,
}

impl Receiving<'_> {
    /// Where the bytes of a copy are to be put that was planned for this writer.
    pub(crate) async fn room_for(&mut self, op: &CopyOp) -> Result<&mut [u8], CudaError> {
        match (&mut self.landing, &self.writer.memory) {
            (None, KvMemory::Host(memory)) => {
                // SAFETY: operations name blocks of this writer only (`plan`), which it has to
                // itself, and this the writer; `&mut self` is the caller's.
                Ok(unsafe { memory.write_blocks(op.destination, op.blocks) })
            }
            (Some(landing), _) => landing.room_for(op).await,
            (None, KvMemory::Cuda(_)) => unreachable!("`receive` began a landing"),
        }
    }

    /// They are there, and are those that were sent.
    pub(crate) fn landed(&mut self, op: &CopyOp) -> Result<(), CudaError> {
        // SAFETY: as above; the writer is borrowed until the landing is settled or dropped.
        self.landing.as_mut().map_or(Ok(()), |landing| unsafe { landing.land(op) })
    }

    /// Waits until they are all in their blocks.
    pub(crate) async fn settled(&mut self) -> Result<(), CudaError> {
        match &mut self.landing {
            Some(landing) => landing.settled().await,
            None => Ok(()),
        }
    }
}
