//! Listens for readers.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::CONNECT_MAX;
use super::answer::{serve, turn_away};
use super::stream::{Broken, Stream};
use crate::{LocalPools, ucx};

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

/// Sends blocks of this process's pools, within limits over all its streams.
pub struct Sender {
    pub(super) pools: Arc<LocalPools>,
    pub(super) limits: ServerLimits,
    pub(super) credit: Semaphore,
    pub(super) status: ServerStatus,
    agent: OnceLock<ucx::Agent>,
}

impl Sender {
    /// A sender with no streams yet.
    pub fn new(pools: Arc<LocalPools>, limits: ServerLimits) -> Self {
        let credit = Semaphore::new(limits.bytes_max.max(limits.credit_bytes) as usize);
        Self { pools, limits, credit, status: ServerStatus::default(), agent: OnceLock::new() }
    }

    /// From now on readers may read the pool of this agent by UCX: it has one.
    pub fn lend_by(&self, agent: ucx::Agent) {
        let _has_one = self.agent.set(agent);
    }

    pub(super) fn agent(&self) -> Option<&ucx::Agent> {
        self.agent.get()
    }

    /// Answers a reader on any stream, until it goes. Dropping the future lets go of what is
    /// pinned. Errors: why the stream is of no use any more.
    pub async fn serve(&self, stream: impl Stream) -> Result<(), Broken> {
        serve(stream, self).await
    }

    /// What it is doing.
    pub fn status(&self) -> &ServerStatus {
        &self.status
    }
}

/// Listens for readers in other processes.
pub struct Server {
    listener: TcpListener,
    sender: Arc<Sender>,
    tls: Option<TlsAcceptor>,
}

impl Server {
    /// Binds to an address. Errors: the system's.
    pub async fn bind(
        address: impl ToSocketAddrs,
        pools: Arc<LocalPools>,
        limits: ServerLimits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, sender: Arc::new(Sender::new(pools, limits)), tls: None })
    }

    /// From now on readers must use TLS.
    pub fn with_tls(self, tls: TlsAcceptor) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Where readers connect to.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What sends the blocks; its `status` says what it is doing, also while the server runs.
    pub fn sender(&self) -> Arc<Sender> {
        self.sender.clone()
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
                        let has_room = connections.len() < self.sender.limits.connections_max;
                        let (sender, tls) = (self.sender.clone(), self.tls.clone());
                        connections.spawn(connection(stream, reader, sender, tls, has_room));
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

async fn connection(
    stream: TcpStream,
    reader: SocketAddr,
    sender: Arc<Sender>,
    tls: Option<TlsAcceptor>,
    has_room: bool,
) {
    let _counted = Under::way(&sender.status.connections);
    let served = async {
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return answer(&sender, stream, has_room).await };
        let secured = timeout(CONNECT_MAX, tls.accept(stream)).await;
        answer(&sender, secured.map_err(|_| Broken::Silent)??, has_room).await
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, %reader, "closed a connection for KV blocks");
    }
}

async fn answer(sender: &Sender, stream: impl Stream, has_room: bool) -> Result<(), Broken> {
    if has_room { sender.serve(stream).await } else { turn_away(stream).await }
}
