//! A reader's connections: made when needed, kept for a while, bounded.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::WorkerLife;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::CONNECT_MAX;
use super::client::{Connection, Failure, Right};
use super::stream::{Broken, Stream};
use super::wire::{Refusal, WireError};
use crate::plan::{CopyOp, Extent};
use crate::{BlockCopy, BlockWriter, Lease, LeaseError, TransferError};

/// Idle connections are closed after this, before their source does it (`IDLE_MAX`).
const KEPT_MAX: Duration = Duration::from_secs(30);

/// Idle connections that are kept per address; more are closed.
const KEPT_PER_ADDRESS_MAX: usize = 8;

/// What a reader allows itself.
#[derive(Clone, Copy, Debug)]
pub struct ReaderLimits {
    /// Pulls at once, each on a connection of its own; further ones wait.
    pub connections_max: usize,
    /// Bytes under way on one connection, if the source grants as many.
    pub credit_bytes: u32,
    /// Bytes under way over all connections; further pulls wait.
    pub bytes_max: u32,
}

impl Default for ReaderLimits {
    fn default() -> Self {
        Self { connections_max: 64, credit_bytes: 16 << 20, bytes_max: 256 << 20 }
    }
}

type Boxed = Connection<Box<dyn Stream>>;

struct Idle {
    connection: Boxed,
    since: Instant,
}

struct Shared {
    limits: ReaderLimits,
    slots: Semaphore,
    bytes: Semaphore,
    idle: Mutex<HashMap<String, Vec<Idle>>>,
}

/// Pulls blocks from any number of sources. Clones share their connections and limits.
#[derive(Clone)]
pub struct Connections(Arc<Shared>);

impl Default for Connections {
    fn default() -> Self {
        Self::new(ReaderLimits::default())
    }
}

impl Connections {
    /// No connections yet.
    pub fn new(limits: ReaderLimits) -> Self {
        let slots = Semaphore::new(limits.connections_max);
        let bytes = Semaphore::new(limits.bytes_max.max(limits.credit_bytes) as usize);
        Self(Arc::new(Shared { limits, slots, bytes, idle: Mutex::default() }))
    }

    /// Pulls under way, or waiting for a connection's hello.
    pub fn pulls(&self) -> usize {
        self.0.limits.connections_max - self.0.slots.available_permits()
    }

    /// Copies blocks of `worker`'s pool, which can be read at `address` ("host:port"), into the
    /// writer's. What was copied counts only once `finish` on the lease has succeeded. When the
    /// future is dropped, the connection is closed, and nothing is written any more.
    pub async fn pull(
        &self,
        address: &str,
        worker: &WorkerLife,
        lease: Lease,
        copies: &[BlockCopy],
        writer: &mut BlockWriter,
        deadline: Instant,
    ) -> Result<(), TransferError> {
        // How many blocks the source has is its own to check.
        let source = Extent { layout: &writer.layout().clone(), blocks: u32::MAX as usize };
        let ops = writer.plan(source, copies)?;
        let bytes = copies.len() * writer.layout().block_bytes();
        if bytes == 0 {
            return Ok(());
        }
        let pulling = async {
            let (_slot, _credit) = self.admit(bytes).await;
            self.0.pull(address, Right { worker, lease }, &ops, writer).await
        };
        let pulled = timeout_at(deadline, pulling).await;
        pulled.map_err(|_| TransferError::Deadline(address.to_string()))?
    }

    /// Waits for a connection's place, and for credit.
    async fn admit(&self, bytes: usize) -> (SemaphorePermit<'_>, SemaphorePermit<'_>) {
        let credit = bytes.min(self.0.limits.credit_bytes as usize) as u32;
        let slot = self.0.slots.acquire().await;
        let credit = self.0.bytes.acquire_many(credit).await;
        let never_closed = "these semaphores are never closed";
        (slot.expect(never_closed), credit.expect(never_closed))
    }
}

impl Shared {
    async fn pull(
        &self,
        address: &str,
        right: Right<'_>,
        ops: &[CopyOp],
        writer: &mut BlockWriter,
    ) -> Result<(), TransferError> {
        let block_bytes = writer.layout().block_bytes();
        let failed = |failure| error(failure, address, right.worker, block_bytes);
        let credit_bytes = self.limits.credit_bytes as usize;
        if let Some(mut connection) = self.take_idle(address).await {
            match connection.pull(right, ops, writer, credit_bytes).await {
                Ok(()) => {
                    self.keep(address, connection);
                    return Ok(());
                }
                // Its source may have closed it just now.
                Err(Failure::Broken(Broken::Io(_))) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        let mut connection = connect(address).await?;
        connection.pull(right, ops, writer, credit_bytes).await.map_err(failed)?;
        self.keep(address, connection);
        Ok(())
    }

    /// A connection that was used before, if one is open.
    async fn take_idle(&self, address: &str) -> Option<Boxed> {
        loop {
            let mut idle = self.idle.lock().get_mut(address)?.pop()?;
            if idle.since.elapsed() < KEPT_MAX && is_quiet(idle.connection.stream()).await {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection for later, and closes what was kept for too long.
    fn keep(&self, address: &str, connection: Boxed) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(|_, kept| {
            kept.retain(|idle| now.duration_since(idle.since) < KEPT_MAX);
            !kept.is_empty()
        });
        let kept = idle.entry(address.to_string()).or_default();
        if kept.len() < KEPT_PER_ADDRESS_MAX {
            kept.push(Idle { connection, since: now });
        }
    }
}

/// Connects, and waits for the hello.
async fn connect(address: &str) -> Result<Boxed, TransferError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Connection::greet(Box::new(stream) as Box<dyn Stream>).await
    };
    let unreachable = |error| TransferError::Connect(address.to_string(), error);
    match timeout(CONNECT_MAX, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Err(_) | Ok(Err(Failure::Broken(Broken::Silent))) => {
            Err(unreachable(ErrorKind::TimedOut.into()))
        }
        Ok(Err(Failure::Broken(Broken::Io(error)))) => Err(unreachable(error)),
        Ok(Err(Failure::Broken(Broken::Wire(error)))) => Err(broken_protocol(error, address)),
        Ok(Err(Failure::Refused(_) | Failure::OverCredit)) => {
            Err(TransferError::Busy(address.to_string()))
        }
    }
}

/// Whether nothing came, not even the end.
async fn is_quiet(stream: &mut Box<dyn Stream>) -> bool {
    let mut byte = [0];
    poll_fn(|context| {
        let read = Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut byte));
        Poll::Ready(read.is_pending())
    })
    .await
}

/// What the caller is told.
fn error(
    failure: Failure,
    address: &str,
    worker: &WorkerLife,
    block_bytes: usize,
) -> TransferError {
    let at = address.to_string();
    match failure {
        Failure::Broken(Broken::Silent) => TransferError::Silent(at),
        Failure::Broken(Broken::Io(error)) => TransferError::Broken(at, error),
        Failure::Broken(Broken::Wire(error)) => broken_protocol(error, address),
        Failure::OverCredit => TransferError::OverCredit { address: at, block_bytes },
        Failure::Refused(refusal) => match refusal {
            Refusal::Busy => TransferError::Busy(at),
            Refusal::SourceGone => TransferError::SourceGone(worker.clone()),
            Refusal::LayoutMismatch => TransferError::LayoutMismatch,
            Refusal::LeaseUnknown => LeaseError::Unknown.into(),
            Refusal::LeaseExpired => LeaseError::Expired.into(),
            Refusal::NotAnnounced => LeaseError::NotAnnounced.into(),
            Refusal::OverCredit => {
                let what = "it says that it was asked for more than it has or grants";
                TransferError::Protocol { address: at, what }
            }
            Refusal::Malformed => {
                let what = "it says that it was asked for nothing that makes sense";
                TransferError::Protocol { address: at, what }
            }
        },
    }
}

fn broken_protocol(error: WireError, address: &str) -> TransferError {
    match error {
        WireError::Checksum => TransferError::Checksum(address.to_string()),
        WireError::Malformed(what) => {
            TransferError::Protocol { address: address.to_string(), what }
        }
    }
}
