//! The `Prefill` service.

use std::sync::Arc;

use engine::{RefusedSequence, SequenceId, SequenceRequest};
use kv_transfer::{Capability, Lease, LeaseId, LeaseTable};
use protocol::v1::{self, prefill_event::Kind, prefill_server::Prefill};
use protocol::{HEARTBEAT, Incarnation, WorkerLife};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use worker::{EngineHost, Grammars, HostError, News, Outputs, SequenceHandle, Worker, outputs};

/// Chunks that one prompt's news may lag behind; beyond, its reader counts as gone.
const OUTPUT_QUEUE: usize = 1024;

/// Events that wait to be written to the connection.
const EVENT_QUEUE: usize = 16;

/// Computes prompts for decode workers.
pub struct PrefillService {
    host: Arc<EngineHost>,
    grammars: Arc<Grammars>,
    leases: Arc<LeaseTable>,
    life: WorkerLife,
    numerics_id: String,
    endpoints: Vec<v1::KvEndpoint>,
    place: Option<v1::Place>,
    rdma: Option<bool>,
}

impl PrefillService {
    /// A service over a worker's engine, whose blocks can be read at `endpoints`.
    pub fn new(worker: &Worker, leases: Arc<LeaseTable>, endpoints: Vec<v1::KvEndpoint>) -> Self {
        let (host, life) = (worker.host.clone(), worker.life.clone());
        let (grammars, numerics_id) = (worker.grammars.clone(), worker.numerics_id().to_string());
        let (place, rdma) = (worker.kv_place().cloned(), worker.has_rdma());
        Self { host, grammars, leases, life, numerics_id, endpoints, place, rdma }
    }

    fn check_addressee(&self, request: &v1::PrefillRequest) -> Result<(), Status> {
        if Incarnation(request.incarnation) != self.life.incarnation {
            return Err(Status::failed_precondition("this is another life of the worker"));
        }
        if request.numerics_id != self.numerics_id {
            return Err(Status::failed_precondition("the numerics ids differ"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Prefill for PrefillService {
    type PrefillStream = ReceiverStream<Result<v1::PrefillEvent, Status>>;

    async fn prefill(
        &self,
        request: Request<v1::PrefillRequest>,
    ) -> Result<Response<Self::PrefillStream>, Status> {
        let request = request.into_inner();
        self.check_addressee(&request)?;
        let (events, stream) = mpsc::channel(EVENT_QUEUE);
        let prompt = Prompt {
            host: self.host.clone(),
            grammars: self.grammars.clone(),
            leases: self.leases.clone(),
            life: self.life.clone(),
            endpoints: self.endpoints.clone(),
            place: self.place.clone(),
            rdma: self.rdma,
            events,
        };
        tokio::spawn(prompt.run(request));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        let lease = lease_of(&request.into_inner())?;
        let renewed = self.leases.renew(Instant::now().into_std(), lease);
        Ok(Response::new(v1::LeaseState { valid: renewed.is_ok() }))
    }

    async fn finish_lease(
        &self,
        request: Request<v1::LeaseRef>,
    ) -> Result<Response<v1::LeaseState>, Status> {
        let lease = lease_of(&request.into_inner())?;
        let finished = self.leases.finish(Instant::now().into_std(), lease);
        Ok(Response::new(v1::LeaseState { valid: finished.is_ok() }))
    }
}

/// One prompt that is computed for a reader.
struct Prompt {
    host: Arc<EngineHost>,
    grammars: Arc<Grammars>,
    leases: Arc<LeaseTable>,
    life: WorkerLife,
    endpoints: Vec<v1::KvEndpoint>,
    place: Option<v1::Place>,
    rdma: Option<bool>,
    events: mpsc::Sender<Result<v1::PrefillEvent, Status>>,
}

/// A lease that ends with its prompt: what is left of it then is not wanted. On a finished lease this
/// changes nothing.
struct GrantedLease<'a> {
    leases: &'a LeaseTable,
    lease: Lease,
}

impl Prompt {
    /// Runs until the reader goes, which it does once it has finished the lease; says all the while how
    /// the engine gets on.
    async fn run(self, request: v1::PrefillRequest) {
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut computed = std::pin::pin!(self.compute(request));
        loop {
            tokio::select! {
                biased;
                _reader_gone = &mut computed => return,
                () = self.events.closed() => return,
                _ = heartbeat.tick() => self.say_progress(),
            }
        }
    }

    async fn compute(&self, request: v1::PrefillRequest) -> Result<(), ReaderGone> {
        let handle = self.host.new_sequence();
        let (outputs, mut news) = outputs(OUTPUT_QUEUE);
        let accepted = self.submit(request, handle.id(), outputs).await.map_err(refusal);
        let granted = match accepted.and_then(|()| self.grant(handle)) {
            Ok(granted) => granted,
            Err(status) => return self.events.send(Err(status)).await.map_err(|_| ReaderGone),
        };
        self.send(Kind::Granted(self.descriptor(granted.lease))).await?;
        self.forward(granted.lease.id, &mut news).await?;
        self.events.closed().await;
        Ok(())
    }

    async fn submit(
        &self,
        request: v1::PrefillRequest,
        id: SequenceId,
        outputs: Outputs,
    ) -> Result<(), HostError> {
        let grammar = self.grammars.get(&request.grammar).await;
        let sequence = SequenceRequest {
            id,
            prompt: request.prompt_tokens,
            generated: request.generated_tokens,
            sampling: request.sampling.unwrap_or_default(),
            stopping: request.stopping.unwrap_or_default(),
            cache_salt: request.cache_salt,
            grammar: grammar.map_err(RefusedSequence::Grammar)?,
            prompt_logprobs: None,
            priority: request.priority,
        };
        self.host.prefill(sequence, outputs).await
    }

    fn grant(&self, handle: SequenceHandle) -> Result<GrantedLease<'_>, Status> {
        let granted = self.leases.grant(Instant::now().into_std(), handle.as_holder());
        let lease = granted.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(GrantedLease { leases: &self.leases, lease })
    }

    fn descriptor(&self, lease: Lease) -> v1::KvDescriptor {
        v1::KvDescriptor {
            worker_id: self.life.id.to_string(),
            incarnation: self.life.incarnation.0,
            lease: lease.id.0,
            capability: lease.capability.to_bytes().to_vec().into(),
            lease_ms: self.leases.limits().duration.as_millis() as u32,
            layout: Some(self.host.layout().into()),
            endpoints: self.endpoints.clone(),
            place: self.place.clone(),
            rdma: self.rdma,
        }
    }

    /// A reader with events to read needs no more of them.
    fn say_progress(&self) {
        let kind = Some(Kind::Progress(self.host.progress()));
        let _full = self.events.try_send(Ok(v1::PrefillEvent { kind }));
    }

    async fn forward(&self, lease: LeaseId, news: &mut News) -> Result<(), ReaderGone> {
        let mut announced = 0;
        while let Some(outputs) = news.next().await {
            for output in outputs {
                if let Some(error) = output.failure {
                    let status = Status::invalid_argument(error.to_string());
                    return self.events.send(Err(status)).await.map_err(|_| ReaderGone);
                }
                let first = output.tokens.into_iter().next();
                let is_last = first.is_some();
                // The token first: it goes to the client while blocks are still on their way.
                if let Some(token) = first {
                    self.send(Kind::FirstToken(v1::FirstToken {
                        token: Some(token),
                        cached_tokens: output.cached_tokens.unwrap_or(0) as u32,
                        finish: output.finish.unwrap_or_default().into(),
                    }))
                    .await?;
                }
                if !output.ready_blocks.is_empty() {
                    self.leases.announce(lease, &output.ready_blocks);
                    announced += output.ready_blocks.len() as u32;
                    let ready = v1::BlocksReady { blocks: announced, added: output.ready_blocks };
                    self.send(Kind::Ready(ready)).await?;
                }
                if is_last {
                    return Ok(());
                }
            }
        }
        let stopped = Status::unavailable("the engine gave the prompt up");
        self.events.send(Err(stopped)).await.map_err(|_| ReaderGone)
    }

    async fn send(&self, kind: Kind) -> Result<(), ReaderGone> {
        let event = v1::PrefillEvent { kind: Some(kind) };
        self.events.send(Ok(event)).await.map_err(|_| ReaderGone)
    }
}

impl Drop for GrantedLease<'_> {
    fn drop(&mut self) {
        self.leases.revoke(self.lease.id);
        self.leases.collect(Instant::now().into_std());
    }
}

struct ReaderGone;

fn lease_of(reference: &v1::LeaseRef) -> Result<Lease, Status> {
    let capability = Capability::from_bytes(&reference.capability)
        .ok_or_else(|| Status::invalid_argument("a capability has 16 bytes"))?;
    Ok(Lease { id: LeaseId(reference.lease), capability })
}

fn refusal(error: HostError) -> Status {
    let message = error.to_string();
    match error {
        HostError::Refused(RefusedSequence::Invalid(_) | RefusedSequence::Grammar(_)) => {
            Status::invalid_argument(message)
        }
        HostError::Refused(RefusedSequence::Overloaded(_)) => Status::resource_exhausted(message),
        HostError::Stopped | HostError::ReservationLost => Status::unavailable(message),
    }
}
