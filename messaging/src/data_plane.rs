//! Connections for gRPC between components, by endpoint name.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

use crate::faults::{self, Faults};

/// Bytes under way in one direction of an in-process connection.
const PIPE_BYTES: usize = 256 * 1024;

/// Connections that wait to be accepted by one listener; further ones are refused.
const ACCEPT_QUEUE: usize = 256;

/// The listeners of this process. Clones share them.
#[derive(Clone, Default)]
pub struct DataPlane {
    listeners: Listeners,
    faults: Option<Arc<dyn Faults>>,
}

/// Accepted connections, for `tonic::transport::Server::serve_with_incoming`.
///
/// Dropping it ends the listening.
pub struct Incoming {
    connections: mpsc::Receiver<DuplexStream>,
    endpoint: String,
    listeners: Listeners,
}

type Listeners = Arc<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>>;

/// An endpoint cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}")]
pub struct ConnectError {
    endpoint: String,
    #[source]
    source: tonic::transport::Error,
}

impl DataPlane {
    pub(crate) fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self { faults: Some(faults), ..Default::default() }
    }

    /// Listens under a name, in place of whoever did before.
    pub fn listen(&self, endpoint: &str) -> Incoming {
        let (sender, connections) = mpsc::channel(ACCEPT_QUEUE);
        self.listeners.lock().insert(endpoint.to_string(), sender);
        let listeners = self.listeners.clone();
        Incoming { connections, endpoint: endpoint.to_string(), listeners }
    }

    /// Connects to a listener.
    pub async fn connect(&self, endpoint: &str) -> Result<Channel, ConnectError> {
        let (listeners, faults) = (self.listeners.clone(), self.faults.clone());
        let name = endpoint.to_string();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let stream = open(&listeners, &name, faults.as_deref());
            async move { stream.map(TokioIo::new) }
        });
        // The authority of in-process calls; nothing resolves it.
        let target = Endpoint::from_static("http://in-process");
        let connected = target.connect_with_connector(connector).await;
        connected.map_err(|source| ConnectError { endpoint: endpoint.to_string(), source })
    }
}

fn open(
    listeners: &Listeners,
    endpoint: &str,
    faults: Option<&dyn Faults>,
) -> std::io::Result<DuplexStream> {
    let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let listener = listeners.lock().get(endpoint).cloned().ok_or_else(refused)?;
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    listener.try_send(theirs).map_err(|_| refused())?;
    let Some(faults) = faults else { return Ok(ours) };
    let (end, far_end) = tokio::io::duplex(PIPE_BYTES);
    faults::join(&faults.link(endpoint), far_end, ours);
    Ok(end)
}

impl Stream for Incoming {
    type Item = std::io::Result<DuplexStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.connections.close();
        let mut listeners = self.listeners.lock();
        // Another listener may have taken the name over.
        if listeners.get(&self.endpoint).is_some_and(mpsc::Sender::is_closed) {
            listeners.remove(&self.endpoint);
        }
    }
}
