//! The local way: source and destination are pools of one process; one copy per block.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use protocol::WorkerLife;

use crate::{BlockWriter, HostMemory, KvLayout, Lease, LeaseError, LeaseTable};

/// Why blocks could not be moved. The reader computes them itself.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The source worker, or this life of it, does not run in this process.
    #[error("worker {} has no pool in this process", .0.id)]
    SourceGone(WorkerLife),
    /// Blocks of another shape or numerics id.
    #[error("the pools' KV layouts differ")]
    LayoutMismatch,
    /// The lease does not allow the read.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// A pool that others in this process may read under its leases.
pub struct LocalSource {
    /// The shape of its blocks.
    pub layout: KvLayout,
    /// Where they lie.
    pub memory: Arc<HostMemory>,
    /// Who may read them.
    pub leases: Arc<LeaseTable>,
}

/// One block to move: from a block of the source pool into the `destination`th block of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Block of the source pool.
    pub source: u32,
    /// Index into the destination's `BlockWriter`.
    pub destination: usize,
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
        let mut sources = self.sources.lock();
        sources.retain(|_, source| source.strong_count() > 0);
        sources.insert(worker, Arc::downgrade(source));
    }

    /// Copies blocks of `worker`'s pool, one memcpy each. What was copied counts only once
    /// `finish` on the lease has succeeded.
    pub fn pull(
        &self,
        now: Instant,
        worker: &WorkerLife,
        lease: Lease,
        copies: &[BlockCopy],
        destination: &mut BlockWriter,
    ) -> Result<(), TransferError> {
        let source = self.sources.lock().get(worker).and_then(Weak::upgrade);
        let source = source.ok_or_else(|| TransferError::SourceGone(worker.clone()))?;
        if source.layout != *destination.layout() {
            return Err(TransferError::LayoutMismatch);
        }
        if let Some(faults) = &self.faults {
            faults.before_read(worker)?;
        }
        let block_bytes = source.layout.block_bytes();
        let blocks: Vec<u32> = copies.iter().map(|copy| copy.source).collect();
        source.leases.read(now, lease, &blocks, || {
            for copy in copies {
                // SAFETY: announced blocks are complete, and the lease pins them unchanged while
                // this closure runs.
                let bytes = unsafe { source.memory.read(copy.source, 0, block_bytes) };
                match &self.faults {
                    None => destination.fill(copy.destination, bytes),
                    Some(faults) => {
                        let mut bytes = bytes.to_vec();
                        faults.in_transit(&mut bytes);
                        destination.fill(copy.destination, &bytes);
                    }
                }
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LeaseLimits;

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
        Arc::new(LocalSource { layout, memory: Arc::new(memory), leases })
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
