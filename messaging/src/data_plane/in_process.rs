//! Connections inside one process: pipes, by name.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{ACCEPT_QUEUE, Connection, Incoming};
use crate::faults::{self, Faults};

/// Bytes under way in one direction of a connection.
const PIPE_BYTES: usize = 256 * 1024;

/// The listeners of this process. Clones share them.
#[derive(Clone, Default)]
pub(super) struct InProcess {
    listeners: Listeners,
    faults: Option<Arc<dyn Faults>>,
}

type Listeners = Arc<Mutex<HashMap<String, Listener>>>;

#[derive(Clone)]
struct Listener {
    queue: mpsc::Sender<Connection>,
    cut: CancellationToken,
}

impl InProcess {
    pub(super) fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self { faults: Some(faults), ..Default::default() }
    }

    pub(super) fn listen(&self, name: &str) -> Incoming {
        let (queue, connections) = mpsc::channel(ACCEPT_QUEUE);
        let cut = CancellationToken::new();
        let listener = Listener { queue, cut: cut.clone() };
        self.listeners.lock().insert(name.to_string(), listener);
        let entry = Entry { name: name.to_string(), listeners: self.listeners.clone() };
        Incoming {
            connections,
            endpoint: name.to_string(),
            address: None,
            _listening: Box::new(entry),
            _cuts_connections: cut.drop_guard(),
        }
    }

    pub(super) async fn connect(&self, endpoint: &str) -> io::Result<Channel> {
        let (listeners, faults) = (self.listeners.clone(), self.faults.clone());
        let name = endpoint.to_string();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let stream = open(&listeners, &name, faults.as_deref());
            async move { stream.map(TokioIo::new) }
        });
        // The authority of in-process calls; nothing resolves it.
        let target = Endpoint::from_static("http://in-process");
        // Nothing but a missing listener is an error here.
        let refused = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there");
        target.connect_with_connector(connector).await.map_err(refused)
    }
}

fn open(
    listeners: &Listeners,
    endpoint: &str,
    faults: Option<&dyn Faults>,
) -> io::Result<DuplexStream> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let listener = listeners.lock().get(endpoint).cloned().ok_or_else(refused)?;
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let accepted = Connection::new(theirs, listener.cut);
    listener.queue.try_send(accepted).map_err(|_| refused())?;
    let Some(faults) = faults else { return Ok(ours) };
    let (end, far_end) = tokio::io::duplex(PIPE_BYTES);
    faults::join(&faults.link(endpoint), far_end, ours);
    Ok(end)
}

/// A listener's name; it goes with the listener.
struct Entry {
    name: String,
    listeners: Listeners,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut listeners = self.listeners.lock();
        // Another listener may have taken the name over.
        if listeners.get(&self.name).is_some_and(|listener| listener.queue.is_closed()) {
            listeners.remove(&self.name);
        }
    }
}
