//! Sessions with decode workers: one long-lived stream per worker, over which all requests go and
//! come.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use messaging::{ConnectError, DataPlane};
use parking_lot::Mutex;
use protocol::v1::generation_client::GenerationClient;
use protocol::v1::{self, FinishReason, RequestUpdate, session_request::Kind};
use protocol::{MESSAGE_BYTES_MAX, SILENCE_MAX, WorkerLife};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Messages that wait to be written to a worker. At the limit requests wait.
const OUTBOUND_QUEUE: usize = 1024;

/// How long a worker may take to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// After an attempt that failed, the next one is made no sooner.
const REOPEN_PAUSE: Duration = Duration::from_millis(250);

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
    /// An attempt to open one has just failed.
    #[error("the worker did not open a session just now")]
    FailedJustNow,
    /// The session ended just now.
    #[error("the session ended")]
    Ended,
}

/// Why a session brings nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It ended or broke.
    Ended,
    /// Nothing came for too long, not even a sign of life.
    Silent,
    /// Its engine is stuck in a step.
    Hung,
}

/// The sessions of a gateway.
pub struct Sessions {
    data_plane: DataPlane,
    /// Each with a lock of its own, so that a worker that does not answer delays its own requests alone.
    places: Mutex<HashMap<WorkerLife, Slot>>,
}

type Slot = Arc<tokio::sync::Mutex<Place>>;

/// A worker's session, or when the last attempt to open one failed.
#[derive(Default)]
struct Place {
    session: Option<Arc<Session>>,
    failed: Option<Instant>,
}

/// One worker's session.
struct Session {
    outbound: mpsc::Sender<v1::SessionRequest>,
    requests: Arc<Mutex<Requests>>,
    next_request: AtomicU64,
}

/// The requests of a session, or why it has none any more.
enum Requests {
    /// In the order in which they came, so that a simulation replays when all are lost at once.
    Open(BTreeMap<u64, mpsc::Sender<RequestUpdate>>),
    Lost(Lost),
}

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
        Self { data_plane, places: Mutex::default() }
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
        let slot = self.slot(worker);
        let mut place = slot.lock().await;
        if let Some(session) = place.session.as_ref().filter(|session| session.is_open()) {
            return Ok(session.clone());
        }
        // Who waited for an attempt that failed does not make another one.
        if place.failed.is_some_and(|failed| failed.elapsed() < REOPEN_PAUSE) {
            return Err(SessionError::FailedJustNow);
        }
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.open(endpoint)).await;
        match opened.unwrap_or(Err(SessionError::TimedOut)) {
            Ok(session) => {
                let session = Arc::new(session);
                *place = Place { session: Some(session.clone()), failed: None };
                Ok(session)
            }
            Err(error) => {
                *place = Place { session: None, failed: Some(Instant::now()) };
                Err(error)
            }
        }
    }

    async fn open(&self, endpoint: &str) -> Result<Session, SessionError> {
        let channel = self.data_plane.connect(endpoint).await?;
        let client = GenerationClient::new(channel);
        Session::open(client.max_decoding_message_size(MESSAGE_BYTES_MAX)).await
    }

    /// A worker's place; those of sessions that have ended go.
    fn slot(&self, worker: &WorkerLife) -> Slot {
        let mut places = self.places.lock();
        let is_wanted = |slot: &Slot| match slot.try_lock() {
            Ok(place) => place.session.as_ref().is_some_and(|session| session.is_open()),
            Err(_opening) => true,
        };
        places.retain(|other, slot| other == worker || is_wanted(slot));
        places.entry(worker.clone()).or_default().clone()
    }
}

impl Session {
    async fn open(
        mut client: GenerationClient<tonic::transport::Channel>,
    ) -> Result<Self, SessionError> {
        let (outbound, messages) = mpsc::channel(OUTBOUND_QUEUE);
        let frames = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let requests = Arc::new(Mutex::new(Requests::Open(BTreeMap::new())));
        tokio::spawn(deliver(frames, requests.clone()));
        Ok(Self { outbound, requests, next_request: AtomicU64::new(0) })
    }

    fn is_open(&self) -> bool {
        matches!(*self.requests.lock(), Requests::Open(_))
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
            Requests::Open(requests) => requests.insert(number, sender),
            Requests::Lost(_) => return Err(SessionError::Ended),
        };
        let message = v1::SessionRequest { kind: Some(Kind::Generate(request)) };
        let outbound = self.outbound.clone();
        // From here on, being dropped cancels.
        let stream = RequestStream { updates, session: self, request: number, ended: false };
        outbound.send(message).await.map_err(|_| SessionError::Ended)?;
        Ok(stream)
    }
}

/// Hands a session's frames out to its requests until it ends, which ends them all. Dropping the frames
/// then has the worker cancel what it still does.
async fn deliver(mut frames: Streaming<v1::StepFrame>, requests: Arc<Mutex<Requests>>) {
    let mut heard = Instant::now();
    // Set anew where it fires alone: a timer per frame would cost more than the frame.
    let mut silence = pin!(tokio::time::sleep_until(heard + SILENCE_MAX));
    let lost = loop {
        let message = tokio::select! {
            biased;
            message = frames.message() => message,
            () = silence.as_mut() => {
                if heard.elapsed() >= SILENCE_MAX {
                    break Lost::Silent;
                }
                silence.as_mut().reset(heard + SILENCE_MAX);
                continue;
            }
        };
        heard = Instant::now();
        let frame = match message {
            Ok(Some(frame)) => frame,
            Ok(None) => break Lost::Ended,
            Err(error) => {
                tracing::info!(error = error.message(), "a worker's session broke");
                break Lost::Ended;
            }
        };
        if let Requests::Open(requests) = &mut *requests.lock() {
            frame.updates.into_iter().for_each(|update| hand_out(requests, update));
        }
        if frame.progress.is_some_and(|progress| progress.is_hung()) {
            break Lost::Hung;
        }
    };
    *requests.lock() = Requests::Lost(lost);
}

fn hand_out(requests: &mut BTreeMap<u64, mpsc::Sender<RequestUpdate>>, update: RequestUpdate) {
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
    /// What has come already, if anything.
    pub fn ready(&mut self) -> Option<RequestUpdate> {
        let update = self.updates.try_recv().ok();
        self.ended |= update.as_ref().is_some_and(ends);
        update
    }

    /// The next news. Errors: the session brings no more.
    pub async fn next(&mut self) -> Result<RequestUpdate, Lost> {
        let update = self.updates.recv().await;
        self.ended |= update.as_ref().is_none_or(ends);
        update.ok_or_else(|| match *self.session.requests.lock() {
            Requests::Lost(lost) => lost,
            // The worker sent more than was asked for.
            Requests::Open(_) => Lost::Ended,
        })
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Requests::Open(requests) = &mut *self.session.requests.lock() {
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
