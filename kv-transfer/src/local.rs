//! The pools of this process, and the local way between them: a plain copy, on the host or by GPUs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use protocol::WorkerLife;

use crate::{
    BlockCopy, BlockWriter, Extent, KvLayout, KvMemory, Lease, LeaseTable, TransferError, cuda,
};

/// A pool that others may read under its leases: in this process, and through a `tcp::Server`.
pub struct LocalSource {
    /// The shape of its blocks.
    pub layout: KvLayout,
    /// Where they lie.
    pub memory: KvMemory,
    /// Who may read them.
    pub leases: Arc<LeaseTable>,
}

impl LocalSource {
    pub(crate) fn extent(&self) -> Extent<'_> {
        Extent { layout: &self.layout, blocks: self.memory.blocks() }
    }
}

/// What a simulation does to transfers. In production there is none.
pub trait TransferFaults: Send + Sync {
    /// Called before blocks are read. Errors: that is what becomes of the read.
    fn before_read(&self, worker: &WorkerLife) -> Result<(), TransferError>;

    /// Called with each block on its way.
    fn in_transit(&self, block: &mut [u8]);
}

/// The pools of this process, by the life of the worker that owns them.
#[derive(Default)]
pub struct LocalPools {
    sources: Mutex<HashMap<WorkerLife, Weak<LocalSource>>>,
    faults: Option<Box<dyn TransferFaults>>,
}

impl LocalPools {
    /// Pools between which `faults` happen: for simulations.
    pub fn with_faults(faults: Box<dyn TransferFaults>) -> Self {
        Self { faults: Some(faults), ..Default::default() }
    }

    /// Makes a pool readable for as long as its owner keeps it.
    pub fn add(&self, worker: WorkerLife, source: &Arc<LocalSource>) {
        // Asked now, a driver answers at once: later it may be in the middle of a step, while the first
        // reader waits.
        if let KvMemory::Cuda(memory) = &source.memory
            && let Err(error) = memory.lend()
        {
            tracing::debug!(%error, "other processes cannot map the KV pool");
        }
        let mut sources = self.sources.lock();
        sources.retain(|_, source| source.strong_count() > 0);
        sources.insert(worker, Arc::downgrade(source));
    }

    /// The pool of this life, if it is in this process.
    pub fn source(&self, worker: &WorkerLife) -> Option<Arc<LocalSource>> {
        self.sources.lock().get(worker).and_then(Weak::upgrade)
    }

    /// Copies blocks of `worker`'s pool, one copy per run of neighbours, and waits until they have
    /// ended. What was copied counts only once `finish` on the lease has succeeded.
    pub fn pull(
        &self,
        now: Instant,
        worker: &WorkerLife,
        lease: Lease,
        copies: &[BlockCopy],
        destination: &mut BlockWriter,
    ) -> Result<(), TransferError> {
        let source = self.source(worker);
        let source = source.ok_or_else(|| TransferError::SourceGone(worker.clone()))?;
        let ops = destination.plan(source.extent(), copies)?;
        self.before_read(worker)?;
        let _pin = source.leases.pin(now, lease, copies.iter().map(|copy| copy.source))?;
        if let (KvMemory::Cuda(from), KvMemory::Cuda(to)) = (&source.memory, destination.memory())
            && !self.are_faulty()
        {
            return Ok(cuda::copy_between(from, to, &ops)?);
        }
        for op in &ops {
            // SAFETY: announced blocks are complete, and the pin keeps them unchanged.
            let bytes = unsafe { source.memory.bytes_of(op.source, op.blocks) }?;
            destination.put(op, &self.faulty(&bytes, source.memory.block_bytes()))?;
        }
        Ok(())
    }

    /// Whether a simulation wants to see each block on its way.
    pub(crate) fn are_faulty(&self) -> bool {
        self.faults.is_some()
    }

    /// What a simulation makes of a read that begins.
    pub(crate) fn before_read(&self, worker: &WorkerLife) -> Result<(), TransferError> {
        self.faults.as_ref().map_or(Ok(()), |faults| faults.before_read(worker))
    }

    /// What a simulation makes of blocks on their way; otherwise the blocks themselves.
    pub(crate) fn faulty<'a>(&self, bytes: &'a [u8], block_bytes: usize) -> Cow<'a, [u8]> {
        let Some(faults) = &self.faults else { return Cow::Borrowed(bytes) };
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(block_bytes).for_each(|block| faults.in_transit(block));
        Cow::Owned(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostMemory, LeaseError, LeaseLimits};

    fn layout() -> KvLayout {
        KvLayout {
            numerics_id: "n".into(),
            block_size: 2,
            layers: 1,
            kv_heads: 1,
            head_dim: 4,
            element_bytes: 4,
        }
    }

    fn life(incarnation: u64) -> WorkerLife {
        WorkerLife::new("prefill-0", incarnation)
    }

    /// A source pool of four blocks, block b filled with the byte b + 1.
    fn source() -> Arc<LocalSource> {
        let layout = layout();
        let memory = HostMemory::new(4, layout.block_bytes()).unwrap();
        for block in 0..4 {
            // SAFETY: nobody else has this memory yet.
            unsafe { memory.write(block, 0, layout.block_bytes()) }.fill(block as u8 + 1);
        }
        let leases = Arc::new(LeaseTable::new(LeaseLimits::default()));
        Arc::new(LocalSource { layout, memory: Arc::new(memory).into(), leases })
    }

    #[test]
    fn pulls_exactly_the_named_blocks_under_a_lease() {
        let (pools, source) = (LocalPools::default(), source());
        pools.add(life(1), &source);
        let lease = source.leases.grant(Instant::now(), Arc::new(())).unwrap();
        source.leases.announce(lease.id, &[3, 1]);

        let memory = Arc::new(HostMemory::new(4, layout().block_bytes()).unwrap());
        // SAFETY: this test alone uses the memory.
        let mut writer = unsafe { BlockWriter::new(memory.clone(), layout(), vec![2, 0]) };
        let copies =
            [BlockCopy { source: 3, destination: 0 }, BlockCopy { source: 1, destination: 1 }];
        pools.pull(Instant::now(), &life(1), lease, &copies, &mut writer).unwrap();
        assert_eq!(source.leases.finish(Instant::now(), lease), Ok(()));

        // SAFETY: the writer is idle.
        let first_byte = |block| unsafe { memory.read(block, 0, 1)[0] };
        assert_eq!([0, 1, 2, 3].map(first_byte), [2, 0, 4, 0]);
    }

    #[test]
    fn refuses_other_lives_other_layouts_and_unannounced_blocks() {
        let (pools, source) = (LocalPools::default(), source());
        pools.add(life(1), &source);
        let lease = source.leases.grant(Instant::now(), Arc::new(())).unwrap();
        let memory = Arc::new(HostMemory::new(1, layout().block_bytes()).unwrap());
        // SAFETY: this test alone uses the memory.
        let mut writer = unsafe { BlockWriter::new(memory, layout(), vec![0]) };
        let copies = [BlockCopy { source: 0, destination: 0 }];

        let other_life = pools.pull(Instant::now(), &life(2), lease, &copies, &mut writer);
        assert!(matches!(other_life, Err(TransferError::SourceGone(_))));
        let other_layout = KvLayout { numerics_id: "other".into(), ..layout() };
        let other_memory = Arc::new(HostMemory::new(1, layout().block_bytes()).unwrap());
        // SAFETY: this test alone uses the memory.
        let mut other = unsafe { BlockWriter::new(other_memory, other_layout, vec![0]) };
        let mismatch = pools.pull(Instant::now(), &life(1), lease, &copies, &mut other);
        assert!(matches!(mismatch, Err(TransferError::LayoutMismatch)));
        let unannounced = pools.pull(Instant::now(), &life(1), lease, &copies, &mut writer);
        assert!(matches!(unannounced, Err(TransferError::Lease(LeaseError::NotAnnounced))));
    }

    #[test]
    fn a_dropped_pool_is_gone() {
        let pools = LocalPools::default();
        let source = source();
        pools.add(life(1), &source);
        let lease = source.leases.grant(Instant::now(), Arc::new(())).unwrap();
        drop(source);
        let memory = Arc::new(HostMemory::new(1, layout().block_bytes()).unwrap());
        // SAFETY: this test alone uses the memory.
        let mut writer = unsafe { BlockWriter::new(memory, layout(), vec![0]) };
        let pulled = pools.pull(Instant::now(), &life(1), lease, &[], &mut writer);
        assert!(matches!(pulled, Err(TransferError::SourceGone(_))));
    }
}
