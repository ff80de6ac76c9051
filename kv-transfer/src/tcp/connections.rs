//! A reader's connections: made when needed, kept for a while, bounded.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::WorkerLife;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::CONNECT_MAX;
use super::client::{Connection, Failure, Right};
use super::failure::{failed, not_connected};
use super::stream::{Broken, Stream};
use super::wire::Kind;
use crate::plan::CopyOp;
use crate::{BlockCopy, BlockWriter, KvLayout, Lease, TransferError};

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
    tls: Option<TlsConnector>,
    kept: Mutex<Kept>,
}

/// Idle connections.
#[derive(Default)]
struct Kept {
    by_address: HashMap<String, Vec<Idle>>,
    /// Whether a task looks after them.
    is_watched: bool,
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
        Self::with(limits, None)
    }

    /// No connections yet; they will use TLS. A source must then have a certificate for the host
    /// in its address.
    pub fn with_tls(limits: ReaderLimits, tls: TlsConnector) -> Self {
        Self::with(limits, Some(tls))
    }

    fn with(limits: ReaderLimits, tls: Option<TlsConnector>) -> Self {
        let slots = Semaphore::new(limits.connections_max);
        let bytes = Semaphore::new(limits.bytes_max.max(limits.credit_bytes) as usize);
        Self(Arc::new(Shared { limits, slots, bytes, tls, kept: Mutex::default() }))
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
        let ops = writer.plan_from_afar(copies)?;
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

    /// Waits on a connection on which nothing is asked, until its source closes it or is gone.
    pub(crate) async fn until_closed(&self, address: &str) {
        if let Ok(mut connection) = self.0.connect(address).await {
            let _closed = connection.stream().read(&mut [0]).await;
        }
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

/// A source that lends blocks.
pub(crate) struct Lender<'a> {
    pub connections: &'a Connections,
    /// "host:port"
    pub address: &'a str,
    pub right: Right<'a>,
    /// Until when it may answer.
    pub deadline: Instant,
}

impl Lender<'_> {
    /// Asks for blocks, which the source keeps pinned for as long as the loan lives; `kind` says by
    /// which way they will be read. Returns also how they are reached.
    pub(crate) async fn borrow(
        &self,
        kind: Kind,
        layout: &KvLayout,
        ops: &[CopyOp],
    ) -> Result<(Loan<'_>, Vec<u8>), TransferError> {
        let shared = &self.connections.0;
        let borrowing = async {
            let slot = shared.slots.acquire().await.expect("this semaphore is never closed");
            let (address, right) = (self.address, self.right);
            let (connection, lent) = shared.borrow(kind, address, right, layout, ops).await?;
            Ok((Loan { lender: self, connection, _slot: slot }, lent))
        };
        self.in_time(borrowing).await?
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, TransferError> {
        let late = || TransferError::Deadline(self.address.to_string());
        // `timeout_at` alone takes an answer that is there at once also when it is late.
        if Instant::now() >= self.deadline {
            return Err(late());
        }
        timeout_at(self.deadline, answer).await.map_err(|_| late())
    }
}

/// Blocks that their source keeps pinned until they are given back, or this is dropped.
pub(crate) struct Loan<'a> {
    lender: &'a Lender<'a>,
    connection: Boxed,
    _slot: SemaphorePermit<'a>,
}

impl Loan<'_> {
    /// Says that the blocks were read. Errors: what was read does not count.
    pub(crate) async fn give_back(mut self) -> Result<(), TransferError> {
        let Lender { connections, address, right, .. } = *self.lender;
        let returned = self.lender.in_time(self.connection.give_back()).await?;
        returned.map_err(|failure| failed(failure, address, right.worker, 0))?;
        connections.0.keep(address, self.connection);
        Ok(())
    }
}

impl Shared {
    async fn borrow(
        &self,
        kind: Kind,
        address: &str,
        right: Right<'_>,
        layout: &KvLayout,
        ops: &[CopyOp],
    ) -> Result<(Boxed, Vec<u8>), TransferError> {
        let failed = |failure| failed(failure, address, right.worker, layout.block_bytes());
        if let Some(mut connection) = self.take_idle(address).await {
            match connection.borrow(kind, right, layout, ops).await {
                Ok(lent) => return Ok((connection, lent)),
                // Its source may have closed it just now.
                Err(Failure::Broken(Broken::Io(_))) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        let mut connection = self.connect(address).await?;
        let lent = connection.borrow(kind, right, layout, ops).await.map_err(failed)?;
        Ok((connection, lent))
    }

    async fn pull(
        self: &Arc<Self>,
        address: &str,
        right: Right<'_>,
        ops: &[CopyOp],
        writer: &mut BlockWriter,
    ) -> Result<(), TransferError> {
        let block_bytes = writer.layout().block_bytes();
        let failed = |failure| failed(failure, address, right.worker, block_bytes);
        let credit_bytes = self.limits.credit_bytes as usize;
        if let Some(mut connection) = self.take_idle(address).await {
            match connection.receive_all(right, ops, writer, credit_bytes).await {
                Ok(()) => {
                    self.keep(address, connection);
                    return Ok(());
                }
                // Its source may have closed it just now.
                Err(Failure::Broken(Broken::Io(_))) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        let mut connection = self.connect(address).await?;
        connection.receive_all(right, ops, writer, credit_bytes).await.map_err(failed)?;
        self.keep(address, connection);
        Ok(())
    }

    /// Connects, and waits for the hello.
    async fn connect(&self, address: &str) -> Result<Boxed, TransferError> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Stream> = match &self.tls {
                None => Box::new(stream),
                Some(tls) => Box::new(tls.connect(name_in(address)?, stream).await?),
            };
            Connection::greet(stream).await
        };
        let connected = timeout(CONNECT_MAX, connecting).await;
        connected
            .unwrap_or(Err(Broken::Silent.into()))
            .map_err(|failure| not_connected(failure, address))
    }

    /// A connection that was used before, if one is open.
    async fn take_idle(&self, address: &str) -> Option<Boxed> {
        loop {
            let mut idle = self.kept.lock().by_address.get_mut(address)?.pop()?;
            if is_quiet(idle.connection.stream()).await {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection for later.
    fn keep(self: &Arc<Self>, address: &str, connection: Boxed) {
        let mut kept = self.kept.lock();
        let idle = kept.by_address.entry(address.to_string()).or_default();
        if idle.len() < KEPT_PER_ADDRESS_MAX {
            idle.push(Idle { connection, since: Instant::now() });
        }
        if !std::mem::replace(&mut kept.is_watched, true) {
            tokio::spawn(close_what_is_idle(Arc::downgrade(self)));
        }
    }
}

/// Closes connections that were kept for long enough, until none is left.
async fn close_what_is_idle(shared: Weak<Shared>) {
    loop {
        sleep(KEPT_MAX / 2).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut kept = shared.kept.lock();
        kept.by_address.retain(|_, idle| {
            idle.retain(|idle| idle.since.elapsed() < KEPT_MAX);
            !idle.is_empty()
        });
        kept.is_watched = !kept.by_address.is_empty();
        if !kept.is_watched {
            return;
        }
    }
}

/// The name that a source's certificate must have.
fn name_in(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _port)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
    ServerName::try_from(host).map_err(io::Error::other)
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
