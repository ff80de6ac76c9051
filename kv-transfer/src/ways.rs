//! Which way blocks are read.
//!
//! ```text
//! // Once per process; `LocalPools` is the one that this process's own sources were added to.
//! let ways = Ways { local: pools, tcp: tcp::Connections::default() };
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

use protocol::{WorkerLife, v1};
use tokio::time::Instant;

use crate::{BlockCopy, BlockWriter, Lease, LocalPools, TransferError, tcp};

/// The name of the tcp way in a `KvEndpoint`.
pub const TCP: &str = "tcp";

/// A way to one worker's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its pool is in this process.
    Local,
    /// Over a connection to "host:port".
    Tcp(String),
}

/// All ways a reader has. Clones share connections and limits.
#[derive(Clone, Default)]
pub struct Ways {
    /// Pools of this process.
    pub local: Arc<LocalPools>,
    /// Connections to other processes.
    pub tcp: tcp::Connections,
}

impl Ways {
    /// The best way to the blocks of `worker`: local if its pool is here, else the first of the
    /// lease's endpoints that is known. Errors: there is none.
    pub fn choose(
        &self,
        endpoints: &[v1::KvEndpoint],
        worker: &WorkerLife,
    ) -> Result<Way, TransferError> {
        if self.local.source(worker).is_some() {
            return Ok(Way::Local);
        }
        let tcp = endpoints.iter().find(|endpoint| endpoint.way == TCP);
        let tcp = tcp.map(|endpoint| Way::Tcp(endpoint.address.clone()));
        tcp.ok_or_else(|| TransferError::SourceGone(worker.clone()))
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
    ) -> Result<(), TransferError> {
        match way {
            Way::Local => {
                let now = Instant::now().into_std();
                self.local.pull(now, worker, lease, copies, writer)
            }
            Way::Tcp(address) => {
                self.tcp.pull(address, worker, lease, copies, writer, deadline).await
            }
        }
    }
}
