//! Listens for readers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::answer::{serve, turn_away};
use crate::LocalPools;

/// How long the listener rests when the system gives no connections, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a source gives to its readers. The defaults suit blocks of up to 16 MiB.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Readers at once; further ones are refused as busy.
    pub connections_max: usize,
    /// Bytes that one read may ask for, and so that one connection can have pinned.
    pub credit_bytes: u32,
    /// Bytes that are being sent over all connections; at least `credit_bytes`.
    pub bytes_max: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { connections_max: 256, credit_bytes: 16 << 20, bytes_max: 256 << 20 }
    }
}

/// What a source is doing. All figures are for metrics and tests.
#[derive(Default)]
pub struct ServerStatus {
    /// Readers that are connected.
    pub connections: AtomicU64,
    /// Reads that are being answered: each has blocks pinned.
    pub reads: AtomicU64,
    /// Bytes of blocks sent since the start.
    pub bytes_sent: AtomicU64,
}

impl ServerStatus {
    pub(super) fn count(&self, bytes: u32) {
        self.bytes_sent.fetch_add(u64::from(bytes), Ordering::Relaxed);
    }
}

/// Counts something for as long as it lives.
pub(super) struct Under<'a>(&'a AtomicU64);

impl<'a> Under<'a> {
    pub(super) fn way(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) pools: Arc<LocalPools>,
    pub(super) limits: ServerLimits,
    pub(super) credit: Semaphore,
    pub(super) status: Arc<ServerStatus>,
}

/// Sends blocks of this process's pools to readers in others.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Server {
    /// Binds to an address. Errors: the system's.
    pub async fn bind(
        address: impl ToSocketAddrs,
        pools: Arc<LocalPools>,
        limits: ServerLimits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let credit = Semaphore::new(limits.bytes_max.max(limits.credit_bytes) as usize);
        let status = Arc::default();
        Ok(Self { listener, shared: Arc::new(Shared { pools, limits, credit, status }) })
    }

    /// Where readers connect to.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What it is doing, also after it runs.
    pub fn status(&self) -> Arc<ServerStatus> {
        self.shared.status.clone()
    }

    /// Answers readers for as long as it is polled; dropping it closes all connections and lets go
    /// of every pin.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, reader)) => {
                        let has_room = connections.len() < self.shared.limits.connections_max;
                        let shared = self.shared.clone();
                        connections.spawn(connection(stream, reader, shared, has_room));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a reader of KV blocks");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, reader: SocketAddr, shared: Arc<Shared>, has_room: bool) {
    let _counted = Under::way(&shared.status.connections);
    let served = match stream.set_nodelay(true) {
        Err(error) => Err(error.into()),
        Ok(()) if has_room => serve(stream, &shared).await,
        Ok(()) => turn_away(stream).await,
    };
    if let Err(error) = served {
        tracing::debug!(%error, %reader, "closed a connection for KV blocks");
    }
}
