//! Which way blocks are read.
//!
//! ```text
//! // Once per process; `LocalPools` is the one that this process's own sources were added to.
//! let ways = Ways { local: pools, ..Ways::default() };
//! // Once per lease.
//! let way = ways.choose(&descriptor.endpoints, &worker)?;
//! // Per announcement, in a task that owns the reservation, so that cancelling the request does
//! // not free blocks that are being written.
//! let copying = tokio::spawn(async move {
//!     let writer = &mut reservation.writer;
//!     let pulled = ways.pull(&way, &worker, lease, &copies, writer, deadline).await;
//!     (reservation, pulled)
//! });
//! ```
//! After an error, `TransferError::advice` says what to do. After the last pull, `finish` on the
//! lease says whether anything counts.

use std::sync::Arc;
use std::time::Duration;

use protocol::{WorkerLife, link, v1};
use tokio::time::Instant;

use crate::{
    Advice, BlockCopy, BlockWriter, KvMemory, Lease, LocalPools, LocalSource, TransferError, cuda,
    tcp, ucx,
};

/// The name of the tcp way in a `KvEndpoint`.
pub const TCP: &str = link::WAY_TCP;

/// The name of the cuda way in a `KvEndpoint`, whose address is "host's id@host:port".
pub const CUDA: &str = link::WAY_CUDA;

/// The name of the ucx way in a `KvEndpoint`, whose address is that of the tcp way.
pub const UCX: &str = link::WAY_UCX;

/// How readers in other processes come to a pool, the best way first. `address` ("host:port") is
/// where its process's `tcp::Server` listens, which lends by `agent` if there is one.
pub fn endpoints(
    source: &LocalSource,
    agent: Option<&ucx::Agent>,
    address: &str,
) -> Vec<v1::KvEndpoint> {
    let endpoint = |way: &str, address| v1::KvEndpoint { way: way.into(), address };
    let host_id = match source.memory {
        KvMemory::Host(_) => None,
        KvMemory::Cuda(_) => cuda::host_id(),
    };
    let cuda = host_id.map(|host_id| endpoint(CUDA, cuda::address_of(&host_id, address)));
    let ucx = agent.map(|_| endpoint(UCX, address.to_string()));
    let tcp = endpoint(TCP, address.to_string());
    cuda.into_iter().chain(ucx).chain([tcp]).collect()
}

/// A way to one worker's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its pool is in this process.
    Local,
    /// Its pool is on a GPU of this host; its process listens at "host:port".
    Cuda(String),
    /// One-sided by UCX; its process listens at "host:port".
    Ucx(String),
    /// Over a connection to "host:port".
    Tcp(String),
}

impl Way {
    /// What it is called, of the names in `protocol::link`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Local => link::WAY_LOCAL,
            Self::Cuda(_) => CUDA,
            Self::Ucx(_) => UCX,
            Self::Tcp(_) => TCP,
        }
    }
}

/// Blocks that were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The name of the way that did it.
    pub way: &'static str,
    /// How long that way took. What another one tried in vain before is not in it.
    pub took: Duration,
}

impl Pulled {
    fn since(began: Instant, way: &'static str) -> Self {
        Self { way, took: began.elapsed() }
    }
}

/// All ways a reader has. Clones share connections and limits.
#[derive(Clone, Default)]
pub struct Ways {
    /// Pools of this process.
    pub local: Arc<LocalPools>,
    /// Pools of other processes on GPUs of this host.
    pub cuda: cuda::Reader,
    /// What reads from other hosts for this process's one pool, if anything does.
    pub ucx: Option<ucx::Agent>,
    /// Connections to other processes.
    pub tcp: tcp::Connections,
}

impl Ways {
    /// The best way to the blocks of `worker`: local if its pool is here, cuda between GPUs of this
    /// host, ucx where both sides have it, else tcp, by the lease's endpoints. Errors: there is none.
    pub fn choose(
        &self,
        endpoints: &[v1::KvEndpoint],
        worker: &WorkerLife,
    ) -> Result<Way, TransferError> {
        if self.local.source(worker).is_some() {
            return Ok(Way::Local);
        }
        if let Some(address) = self.cuda.address(endpoints, worker) {
            return Ok(Way::Cuda(address));
        }
        let address = |way| {
            let mut endpoints = endpoints.iter();
            endpoints.find(|endpoint| endpoint.way == way).map(|found| found.address.clone())
        };
        if self.ucx.as_ref().is_some_and(|agent| agent.reads_from(worker))
            && let Some(address) = address(UCX)
        {
            return Ok(Way::Ucx(address));
        }
        address(TCP).map(Way::Tcp).ok_or_else(|| TransferError::SourceGone(worker.clone()))
    }

    /// Copies blocks of `worker`'s pool into the writer's. What was copied counts only once
    /// `finish` on the lease has succeeded. The local way copies in one go, without yielding: a
    /// caller with much to copy hands `LocalPools::pull` to a thread that may block.
    pub async fn pull(
        &self,
        way: &Way,
        worker: &WorkerLife,
        lease: Lease,
        copies: &[BlockCopy],
        writer: &mut BlockWriter,
        deadline: Instant,
    ) -> Result<Pulled, TransferError> {
        let wanted = Wanted { worker, lease, copies, deadline };
        match way {
            Way::Local => {
                let began = Instant::now();
                self.local.pull(began.into_std(), worker, lease, copies, writer)?;
                Ok(Pulled::since(began, way.name()))
            }
            Way::Cuda(address) => self.pull_by_cuda(address, &wanted, writer).await,
            Way::Ucx(address) => self.pull_by_ucx(address, &wanted, writer).await,
            Way::Tcp(address) => self.pull_by_tcp(address, &wanted, writer).await,
        }
    }

    /// By cuda, or else by tcp from the same process: this time, and as long as it lives.
    async fn pull_by_cuda(
        &self,
        address: &str,
        wanted: &Wanted<'_>,
        writer: &mut BlockWriter,
    ) -> Result<Pulled, TransferError> {
        if let KvMemory::Cuda(memory) = writer.memory() {
            let (memory, right, deadline) = (memory.clone(), wanted.right(), wanted.deadline);
            let lender = tcp::Lender { connections: &self.tcp, address, right, deadline };
            let began = Instant::now();
            match self.cuda.pull(&lender, wanted.copies, writer, &memory).await {
                Err(error @ (TransferError::Cuda(_) | TransferError::NotLent(_)))
                    if error.advice() == Advice::RetryOther =>
                {
                    self.cuda.give_up(wanted.worker, &error);
                }
                pulled => return pulled.map(|()| Pulled::since(began, CUDA)),
            }
        }
        self.pull_by_tcp(address, wanted, writer).await
    }

    /// By ucx, or else by tcp from the same process: this time, and for a while.
    async fn pull_by_ucx(
        &self,
        address: &str,
        wanted: &Wanted<'_>,
        writer: &mut BlockWriter,
    ) -> Result<Pulled, TransferError> {
        if let Some(agent) = &self.ucx {
            let (began, right) = (Instant::now(), wanted.right());
            let Wanted { copies, deadline, .. } = *wanted;
            let pulled = agent.pull(&self.tcp, address, right, copies, writer, deadline).await;
            match pulled {
                Err(
                    error @ (TransferError::Ucx(..)
                    | TransferError::NotLent(_)
                    | TransferError::Silent(_)
                    | TransferError::Cuda(_)),
                ) if error.advice() == Advice::RetryOther => agent.avoid(wanted.worker, &error),
                pulled => return pulled.map(|()| Pulled::since(began, UCX)),
            }
        }
        self.pull_by_tcp(address, wanted, writer).await
    }

    async fn pull_by_tcp(
        &self,
        address: &str,
        wanted: &Wanted<'_>,
        writer: &mut BlockWriter,
    ) -> Result<Pulled, TransferError> {
        let Wanted { worker, lease, copies, deadline } = *wanted;
        let began = Instant::now();
        self.tcp.pull(address, worker, lease, copies, writer, deadline).await?;
        Ok(Pulled::since(began, TCP))
    }
}

/// Blocks that are to be copied, by what right, and until when.
struct Wanted<'a> {
    worker: &'a WorkerLife,
    lease: Lease,
    copies: &'a [BlockCopy],
    deadline: Instant,
}

impl Wanted<'_> {
    fn right(&self) -> tcp::Right<'_> {
        tcp::Right { worker: self.worker, lease: self.lease }
    }
}
