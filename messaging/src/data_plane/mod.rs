//! Connections for gRPC between components: in one process by name, or over TCP by address.

mod advertised;
mod connection;
mod in_process;
mod tcp;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::DropGuard;
use tonic::transport::{Channel, Server};

use crate::faults::Faults;
use in_process::InProcess;
use tcp::Tcp;

pub use advertised::{advertised_endpoint, advertised_host};
pub use connection::Connection;
pub use tcp::TcpOptions;
pub use tls::{Tls, TlsError, TlsFiles};

/// Connections that wait to be accepted by one listener; further ones are refused.
const ACCEPT_QUEUE: usize = 256;

/// Makes and takes connections. Clones share it. The default is in process.
#[derive(Clone)]
pub struct DataPlane {
    way: Way,
}

#[derive(Clone)]
enum Way {
    InProcess(InProcess),
    Tcp(Arc<Tcp>),
}

/// Accepted connections, for `serve_with_incoming` of a server made by `DataPlane::server`.
///
/// Dropping it ends the listening and cuts every connection that came from it: who does not serve
/// any more must not go on answering old acquaintances.
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
    endpoint: String,
    address: Option<SocketAddr>,
    /// Ends the listening.
    _listening: Box<dyn Send + Sync>,
    _cuts_connections: DropGuard,
}

/// An endpoint cannot be reached. `Display` says which and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}: {cause}")]
pub struct ConnectError {
    endpoint: String,
    cause: io::Error,
}

impl DataPlane {
    /// Connections over TCP, with TLS if `options` say so. Errors: the TLS files cannot be used.
    pub fn tcp(options: TcpOptions) -> Result<Self, TlsError> {
        Ok(Self { way: Way::Tcp(Arc::new(Tcp::new(options)?)) })
    }

    pub(crate) fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self { way: Way::InProcess(InProcess::with_faults(faults)) }
    }

    /// Listens: in process under `name`, in place of whoever did before; over TCP on the address of
    /// the options. `Incoming::endpoint` is what others connect to. Errors: the address cannot be
    /// listened on.
    pub async fn listen(&self, name: &str) -> io::Result<Incoming> {
        match &self.way {
            Way::InProcess(in_process) => Ok(in_process.listen(name)),
            Way::Tcp(tcp) => tcp.listen().await,
        }
    }

    /// Connects to an endpoint; over TCP within two seconds, in which the other side must have
    /// begun to speak. The channel connects anew by itself where its connection breaks.
    pub async fn connect(&self, endpoint: &str) -> Result<Channel, ConnectError> {
        let connected = match &self.way {
            Way::InProcess(in_process) => in_process.connect(endpoint).await,
            Way::Tcp(tcp) => tcp.connect(endpoint).await,
        };
        connected.map_err(|cause| ConnectError { endpoint: endpoint.to_string(), cause })
    }

    /// The TLS of its connections, for others that shall have the same; none if there is none.
    pub fn tls(&self) -> Option<&Tls> {
        match &self.way {
            Way::InProcess(_) => None,
            Way::Tcp(tcp) => tcp.tls(),
        }
    }

    /// A gRPC server with this data plane's limits and keep-alive.
    pub fn server(&self) -> Server {
        match &self.way {
            Way::InProcess(_) => Server::builder(),
            Way::Tcp(_) => tcp::server(),
        }
    }
}

impl Default for DataPlane {
    fn default() -> Self {
        Self { way: Way::InProcess(InProcess::default()) }
    }
}

impl Incoming {
    /// What others connect to: `host:port`, or the name in process.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What is listened on; nothing in process.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Before `_listening` is dropped, which looks whether its queue is closed.
        self.connections.close();
    }
}
