//! Reads pools of other processes of this host: maps them, and copies for itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use protocol::{WorkerLife, v1};

use super::copies::{Copies, Source};
use super::{CudaError, CudaMemory, Device, Lent};
use crate::plan::{CopyOp, split};
use crate::tcp::wire::Kind;
use crate::tcp::{Lender, batches};
use crate::{BlockCopy, BlockWriter, CUDA, TransferError, tcp};
use cuda_driver::Handle;

/// Bytes that are copied under one loan: what a deadline may have to wait for, because copies that
/// a GPU has begun cannot be called back.
const LOAN_BYTES: usize = 256 << 20;

/// Pools that stay mapped; those beyond are mapped for one pull at a time.
const MAPPINGS_MAX: usize = 64;

/// Sources that are remembered as out of reach.
const REFUSED_MAX: usize = 1024;

/// What tells this machine, since it was started, from all others.
pub(crate) fn host_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_string()).filter(|id| !id.is_empty())
}

/// The address of the cuda way to a pool whose process listens at `tcp` ("host:port").
pub(crate) fn address_of(host_id: &str, tcp: &str) -> String {
    format!("{host_id}@{tcp}")
}

/// Pools of other processes that this one has mapped. Clones share them.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

struct Shared {
    /// Without one, no source is on this host.
    host_id: Option<String>,
    mappings: Mutex<HashMap<WorkerLife, Arc<Mapping>>>,
    /// Those to which the way was tried in vain: asked no more in this life of theirs.
    refused: Mutex<HashSet<WorkerLife>>,
}

impl Default for Reader {
    /// No pools yet.
    fn default() -> Self {
        let (mappings, refused) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { host_id: host_id(), mappings, refused }))
    }
}

impl Reader {
    /// Where to ask for `worker`'s pool ("host:port"), if it is on this host and was not found out
    /// of reach.
    pub(crate) fn address(
        &self,
        endpoints: &[v1::KvEndpoint],
        worker: &WorkerLife,
    ) -> Option<String> {
        let ours = self.0.host_id.as_deref()?;
        let here =
            endpoints.iter().filter(|endpoint| endpoint.way == CUDA).find_map(|endpoint| {
                let (host_id, address) = endpoint.address.split_once('@')?;
                (host_id == ours).then(|| address.to_string())
            })?;
        (!self.0.refused.lock().contains(worker)).then_some(here)
    }

    /// From now on `worker` is read by another way, as long as it lives.
    pub(crate) fn give_up(&self, worker: &WorkerLife, error: &TransferError) {
        let mut refused = self.0.refused.lock();
        if refused.len() >= REFUSED_MAX {
            refused.clear();
        }
        if refused.insert(worker.clone()) {
            tracing::warn!(%error, worker = %worker.id, "its KV blocks come over tcp instead");
        }
    }

    /// Pools that are mapped now.
    pub fn mappings(&self) -> usize {
        self.0.mappings.lock().len()
    }

    /// Copies blocks of `worker`'s pool into the writer's, which lie in `memory`. A copy that has
    /// begun is waited for, also beyond the deadline and when the future is dropped.
    pub(crate) async fn pull(
        &self,
        lender: &Lender<'_>,
        copies: &[BlockCopy],
        writer: &mut BlockWriter,
        memory: &Arc<CudaMemory>,
    ) -> Result<(), TransferError> {
        let blocks_max = (LOAN_BYTES / memory.block_bytes()).clamp(1, u32::MAX as usize);
        let ops = split(&writer.plan_from_afar(copies)?, blocks_max as u32);
        for batch in batches(&ops, blocks_max) {
            let (loan, lent) = lender.borrow(Kind::BorrowByCuda, writer.layout(), batch).await?;
            let what = "a loan that cannot be understood";
            let lent = Lent::decode(&lent).ok_or_else(|| TransferError::Protocol {
                address: lender.address.to_string(),
                what,
            })?;
            let mapping = self.mapping(lender, memory, &lent)?;
            // SAFETY: the loan pins the source's blocks, and the writer, which the caller has to
            // itself, was asked for the operations.
            unsafe { copy(&mapping, memory, batch, lender.address) }.await?;
            loan.give_back().await?;
        }
        Ok(())
    }

    /// The source's pool in our address space, mapped once.
    fn mapping(
        &self,
        lender: &Lender<'_>,
        memory: &CudaMemory,
        lent: &Lent,
    ) -> Result<Arc<Mapping>, CudaError> {
        let worker = lender.right.worker;
        let mut mappings = self.0.mappings.lock();
        if let Some(mapping) = mappings.get(worker)
            && mapping.lent == *lent
            && mapping.device == *memory.device()
        {
            return Ok(mapping.clone());
        }
        let mapping = Arc::new(Mapping::open(memory.device(), lent)?);
        if mappings.len() < MAPPINGS_MAX {
            mappings.insert(worker.clone(), mapping.clone());
            let watched = (Arc::downgrade(&self.0), worker.clone(), Arc::downgrade(&mapping));
            tokio::spawn(watch(lender.connections.clone(), lender.address.to_string(), watched));
        }
        Ok(mapping)
    }
}

/// Unmaps a pool when its source goes: what is mapped stays allocated on the GPU, also when its
/// owner is dead. An idle connection tells; it also ends when nothing was asked for a while.
async fn watch(
    connections: tcp::Connections,
    address: String,
    (shared, worker, mapping): (Weak<Shared>, WorkerLife, Weak<Mapping>),
) {
    connections.until_closed(&address).await;
    let Some(shared) = shared.upgrade() else { return };
    let mut mappings = shared.mappings.lock();
    let is_it = |found: &Arc<Mapping>| std::ptr::eq(Arc::as_ptr(found), mapping.as_ptr());
    let unmapped = mappings.get(&worker).is_some_and(is_it).then(|| mappings.remove(&worker));
    drop(mappings);
    drop(unmapped);
}

/// Another process's pool.
struct Mapping {
    device: Arc<Device>,
    memory: cuda_driver::Mapping,
    written: Handle,
    lent: Lent,
}

impl Mapping {
    fn open(device: &Arc<Device>, lent: &Lent) -> Result<Self, CudaError> {
        let memory = cuda_driver::Mapping::open(device, lent.memory)?;
        let _current = device.enter()?;
        let mut written = Handle::NULL;
        // SAFETY: the pointer is valid; a handle that is none is the driver's to refuse. In this
        // device's context, so that none is needed on the source's.
        unsafe { device.driver().ipc_open_event(&mut written, lent.event) }?;
        Ok(Self { device: device.clone(), memory, written, lent: lent.clone() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: copies from the mapping hold it until they have ended.
        let _destroyed = unsafe { self.device.driver().destroy_event(self.written) };
    }
}

/// # Safety
/// The source's blocks stay as they are, and nobody else uses the destination's, until this is done
/// or dropped.
async unsafe fn copy(
    mapping: &Mapping,
    memory: &CudaMemory,
    ops: &[CopyOp],
    address: &str,
) -> Result<(), TransferError> {
    let mut copies = Copies::begin(memory.device())?;
    copies.after(mapping.written)?;
    copies.after(memory.written())?;
    let block_bytes = memory.block_bytes() as u64;
    let end = |op: &CopyOp| (u64::from(op.source) + u64::from(op.blocks)) * block_bytes;
    if ops.iter().any(|op| end(op) > mapping.lent.bytes) {
        let what = "its pool ends before the blocks that it lent";
        return Err(TransferError::Protocol { address: address.to_string(), what });
    }
    let source = Source { base: mapping.memory.address(), device: None, is_reached: true };
    // SAFETY: both pools have the blocks, and outlive the copies, which are waited for here or by
    // dropping them; the rest is the caller's promise.
    unsafe { copies.between_pools(memory, &source, ops) }?;
    Ok(copies.settled().await?)
}
