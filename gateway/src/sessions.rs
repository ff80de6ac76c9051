//! Sessions with decode workers: one long-lived stream per worker, over which all requests go and
//! come.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use messaging::{ConnectError, DataPlane};
use parking_lot::Mutex;
use protocol::v1::generation_client::GenerationClient;
use protocol::v1::{self, FinishReason, RequestUpdate, session_request::Kind};
use protocol::{MESSAGE_BYTES_MAX, WorkerLife};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Messages that wait to be written to a worker. At the limit requests wait.
const OUTBOUND_QUEUE: usize = 1024;

/// How long a worker may take to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a worker cannot be given a request.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not accept a session.
    #[error("the worker refused the session")]
    Refused(#[from] tonic::Status),
    /// It does not answer.
    #[error("the worker did not open a session in time")]
    TimedOut,
    /// The session ended just now.
    #[error("the session ended")]
    Ended,
}

/// The sessions of a gateway.
pub struct Sessions {
    data_plane: DataPlane,
    open: tokio::sync::Mutex<HashMap<WorkerLife, Arc<Session>>>,
}

/// One worker's session.
struct Session {
    outbound: mpsc::Sender<v1::SessionRequest>,
    /// Absent once the session has ended.
    requests: Arc<Mutex<Option<Requests>>>,
    next_request: AtomicU64,
}

type Requests = HashMap<u64, mpsc::Sender<RequestUpdate>>;

/// One request's news. Dropping it before the end cancels the request.
pub struct RequestStream {
    updates: mpsc::Receiver<RequestUpdate>,
    session: Arc<Session>,
    request: u64,
    ended: bool,
}

impl Sessions {
    /// No sessions.
    pub fn new(data_plane: DataPlane) -> Self {
        Self { data_plane, open: Default::default() }
    }

    /// Gives a request to a worker, opening a session where there is none. The request's number
    /// is set here.
    pub async fn start(
        &self,
        worker: &WorkerLife,
        endpoint: &str,
        request: v1::GenerateRequest,
    ) -> Result<RequestStream, SessionError> {
        let session = self.session(worker, endpoint).await?;
        session.start(request).await
    }

    async fn session(
        &self,
        worker: &WorkerLife,
        endpoint: &str,
    ) -> Result<Arc<Session>, SessionError> {
        let mut open = self.open.lock().await;
        open.retain(|_, session| session.is_open());
        if let Some(session) = open.get(worker) {
            return Ok(session.clone());
        }
        let opening = async {
            let channel = self.data_plane.connect(endpoint).await?;
            let client = GenerationClient::new(channel);
            Session::open(client.max_decoding_message_size(MESSAGE_BYTES_MAX)).await
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, opening).await;
        let session = Arc::new(opened.map_err(|_| SessionError::TimedOut)??);
        open.insert(worker.clone(), session.clone());
        Ok(session)
    }
}

impl Session {
    async fn open(
        mut client: GenerationClient<tonic::transport::Channel>,
    ) -> Result<Self, SessionError> {
        let (outbound, messages) = mpsc::channel(OUTBOUND_QUEUE);
        let frames = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let requests = Arc::new(Mutex::new(Some(Requests::new())));
        tokio::spawn(deliver(frames, requests.clone()));
        Ok(Self { outbound, requests, next_request: AtomicU64::new(0) })
    }

    fn is_open(&self) -> bool {
        self.requests.lock().is_some()
    }

    async fn start(
        self: Arc<Self>,
        mut request: v1::GenerateRequest,
    ) -> Result<RequestStream, SessionError> {
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        request.request = number;
        // Each update carries a token or the end: the queue has room for all there can be.
        let tokens = request.stopping.as_ref().map_or(0, |stopping| stopping.max_tokens as usize);
        let (sender, updates) = mpsc::channel(tokens + 2);
        match &mut *self.requests.lock() {
            Some(requests) => requests.insert(number, sender),
            None => return Err(SessionError::Ended),
        };
        let message = v1::SessionRequest { kind: Some(Kind::Generate(request)) };
        let outbound = self.outbound.clone();
        // From here on, being dropped cancels.
        let stream = RequestStream { updates, session: self, request: number, ended: false };
        outbound.send(message).await.map_err(|_| SessionError::Ended)?;
        Ok(stream)
    }
}

/// Hands a session's frames out to its requests until it ends, which ends them all.
async fn deliver(mut frames: Streaming<v1::StepFrame>, requests: Arc<Mutex<Option<Requests>>>) {
    loop {
        match frames.message().await {
            Ok(Some(frame)) => {
                if let Some(requests) = &mut *requests.lock() {
                    frame.updates.into_iter().for_each(|update| hand_out(requests, update));
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = error.message(), "a worker's session broke");
                break;
            }
        }
    }
    requests.lock().take();
}

fn hand_out(requests: &mut Requests, update: RequestUpdate) {
    let number = update.request;
    let is_last = ends(&update);
    let Some(request) = requests.get(&number) else { return };
    // A full queue means a worker that sends more than was asked for; the request ends as broken.
    let accepted = request.try_send(update).is_ok();
    if is_last || !accepted {
        requests.remove(&number);
    }
}

fn ends(update: &RequestUpdate) -> bool {
    update.finish() != FinishReason::Unspecified || update.failure.is_some()
}

impl RequestStream {
    /// The next news; none when the session broke.
    pub async fn next(&mut self) -> Option<RequestUpdate> {
        let update = self.updates.recv().await;
        self.ended |= update.as_ref().is_none_or(ends);
        update
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Some(requests) = &mut *self.session.requests.lock() {
            requests.remove(&self.request);
        }
        let cancel = v1::CancelRequest { request: self.request };
        let message = v1::SessionRequest { kind: Some(Kind::Cancel(cancel)) };
        if let Err(mpsc::error::TrySendError::Full(message)) =
            self.session.outbound.try_send(message)
        {
            let outbound = self.session.outbound.clone();
            tokio::spawn(async move { outbound.send(message).await });
        }
    }
}
