//! A `Prefill` service that passes everything on to the real worker and back, and stops at a named
//! point of the handoff until it is told to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::HEARTBEAT;
use protocol::v1::prefill_client::PrefillClient;
use protocol::v1::prefill_event::Kind;
use protocol::v1::prefill_server::{Prefill, PrefillServer};
use protocol::v1::{self, GenerateRequest, PrefillEvent};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Client, DEADLINE};
use crate::system::{PREFILL, Plan, System, via};

pub const PROXY: &str = "proxy/7";

/// Where the proxy can stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The call has come, and is not passed on.
    Call,
    /// The lease was passed on, and nothing more.
    Granted,
    /// The first of several chunks was announced.
    FirstBlocks,
    /// The first token was passed on, and the last blocks were not.
    FirstToken,
    /// All blocks were read, and that the lease is finished is not passed on.
    LastBlocks,
    /// The lease is finished, and that is not passed back.
    Finished,
}

impl Point {
    pub const ALL: [Self; 6] = [
        Self::Call,
        Self::Granted,
        Self::FirstBlocks,
        Self::FirstToken,
        Self::LastBlocks,
        Self::Finished,
    ];
}

/// What the proxy does. Clones are one.
#[derive(Clone)]
pub struct Proxy {
    /// Where it stops, if anywhere.
    pub stops_at: Option<Point>,
    /// While it holds events back, it says that the engine gets on.
    pub keeps_alive: bool,
    /// Renewals are passed on only once it goes on.
    pub holds_renewals: bool,
    /// What it makes of calls and of leases.
    pub changes_call: fn(&mut v1::PrefillRequest),
    pub changes_grant: fn(&mut v1::KvDescriptor),
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    reached: CancellationToken,
    goes_on: CancellationToken,
    handoffs: AtomicUsize,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            stops_at: None,
            keeps_alive: false,
            holds_renewals: false,
            changes_call: |_| {},
            changes_grant: |_| {},
            state: Arc::default(),
        }
    }
}

impl Proxy {
    pub fn stopping_at(point: Point) -> Self {
        Self { stops_at: Some(point), ..Default::default() }
    }

    /// Serves at `PROXY`.
    pub async fn serve(&self, system: &System) {
        let service = Service {
            proxy: self.clone(),
            worker: PrefillClient::new(system.connect(PREFILL).await),
        };
        let server = Server::builder().add_service(PrefillServer::new(service));
        let incoming = system.network.data_plane.listen(PROXY).await.unwrap();
        tokio::spawn(server.serve_with_incoming(incoming));
    }

    /// Waits until it has stopped.
    pub async fn reached(&self) {
        let reached = timeout(DEADLINE, self.state.reached.cancelled()).await;
        reached.unwrap_or_else(|_| panic!("{:?} is not reached", self.stops_at));
    }

    pub fn go_on(&self) {
        self.state.goes_on.cancel();
    }

    /// How many leases were finished as valid.
    pub fn handoffs(&self) -> usize {
        self.state.handoffs.load(Ordering::Relaxed)
    }

    async fn pass(&self, point: Point) {
        if self.stops_at == Some(point) {
            self.state.reached.cancel();
            self.state.goes_on.cancelled().await;
        }
    }

    async fn forward(
        &self,
        mut from: Streaming<PrefillEvent>,
        to: mpsc::Sender<Result<PrefillEvent, Status>>,
    ) {
        let forward = async {
            while let Some(event) = from.message().await.transpose() {
                let (event, point) = self.look_at(event);
                if to.send(event).await.is_err() {
                    return;
                }
                let Some(point) = point else { continue };
                tokio::select! {
                    biased;
                    () = self.pass(point) => {}
                    () = keep_alive(&to), if self.keeps_alive => {}
                }
            }
        };
        tokio::select! {
            () = forward => {}
            () = to.closed() => {}
        }
    }

    fn look_at(
        &self,
        mut event: Result<PrefillEvent, Status>,
    ) -> (Result<PrefillEvent, Status>, Option<Point>) {
        let point = match event.as_mut().ok().and_then(|event| event.kind.as_mut()) {
            Some(Kind::Granted(granted)) => {
                (self.changes_grant)(granted);
                Some(Point::Granted)
            }
            Some(Kind::Ready(_)) => Some(Point::FirstBlocks),
            Some(Kind::FirstToken(_)) => Some(Point::FirstToken),
            Some(Kind::Progress(_)) | None => None,
        };
        (event, point)
    }
}

/// Says that the engine gets on, until nobody hears it.
async fn keep_alive(to: &mpsc::Sender<Result<PrefillEvent, Status>>) {
    let kind = Some(Kind::Progress(v1::Progress::default()));
    while to.send(Ok(PrefillEvent { kind: kind.clone() })).await.is_ok() {
        sleep(HEARTBEAT).await;
    }
}

/// A system with this proxy, and a client whose request number 1 goes by it.
pub async fn asked(plan: Plan, proxy: &Proxy, request: GenerateRequest) -> (System, Client) {
    let system = System::start(plan).await;
    proxy.serve(&system).await;
    let mut client = Client::connect(&system).await;
    client.ask(1, via(PROXY, request)).await;
    (system, client)
}

struct Service {
    proxy: Proxy,
    worker: PrefillClient<Channel>,
}

#[tonic::async_trait]
impl Prefill for Service {
    type PrefillStream = ReceiverStream<Result<PrefillEvent, Status>>;

    async fn prefill(
        &self,
        request: Request<v1::PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        self.proxy.pass(Point::Call).await;
        let mut request = request.into_inner();
        (self.proxy.changes_call)(&mut request);
        let events = self.worker.clone().prefill(request).await?.into_inner();
        let (sender, stream) = mpsc::channel(1);
        let proxy = self.proxy.clone();
        tokio::spawn(async move { proxy.forward(events, sender).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        if self.proxy.holds_renewals {
            self.proxy.state.goes_on.cancelled().await;
        }
        self.worker.clone().renew_lease(request.into_inner()).await
    }

    async fn finish_lease(
        &self,
        request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        self.proxy.pass(Point::LastBlocks).await;
        let finished = self.worker.clone().finish_lease(request.into_inner()).await?;
        let handoffs = usize::from(finished.get_ref().valid);
        self.proxy.state.handoffs.fetch_add(handoffs, Ordering::Relaxed);
        self.proxy.pass(Point::Finished).await;
        Ok(finished)
    }
}
