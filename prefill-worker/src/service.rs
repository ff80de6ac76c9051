//! The `Prefill` service.

use std::sync::Arc;

use engine::{RefusedSequence, SequenceRequest};
use kv_transfer::{Capability, Lease, LeaseId, LeaseTable};
use protocol::v1::{self, prefill_event::Kind, prefill_server::Prefill};
use protocol::{Incarnation, WorkerLife};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use worker::{EngineHost, HostError, News, SequenceHandle, Worker, outputs};

/// Chunks that one prompt's news may lag behind; beyond, its reader counts as gone.
const OUTPUT_QUEUE: usize = 1024;

/// Events that wait to be written to the connection.
const EVENT_QUEUE: usize = 16;

/// Computes prompts for decode workers.
pub struct PrefillService {
    host: Arc<EngineHost>,
    leases: Arc<LeaseTable>,
    life: WorkerLife,
    numerics_id: String,
}

impl PrefillService {
    /// A service over a worker's engine.
    pub fn new(worker: &Worker, leases: Arc<LeaseTable>) -> Self {
        let (host, life) = (worker.host.clone(), worker.life.clone());
        Self { host, leases, life, numerics_id: worker.numerics_id().to_string() }
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

    fn grant(&self, handle: &SequenceHandle) -> Result<(Lease, v1::KvDescriptor), Status> {
        let granted = self.leases.grant(Instant::now().into_std(), handle.as_holder());
        let lease = granted.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let descriptor = v1::KvDescriptor {
            worker_id: self.life.id.to_string(),
            incarnation: self.life.incarnation.0,
            lease: lease.id.0,
            capability: lease.capability.to_bytes().to_vec().into(),
            lease_ms: self.leases.limits().duration.as_millis() as u32,
            layout: Some(self.host.layout().into()),
            endpoints: Vec::new(),
        };
        Ok((lease, descriptor))
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
        let handle = self.host.new_sequence();
        let (outputs, news) = outputs(OUTPUT_QUEUE);
        let sequence = SequenceRequest {
            id: handle.id(),
            prompt: request.prompt_tokens,
            generated: request.generated_tokens,
            sampling: request.sampling.unwrap_or_default(),
            stopping: request.stopping.unwrap_or_default(),
            cache_salt: request.cache_salt,
        };
        self.host.prefill(sequence, outputs).await.map_err(refusal)?;
        let (lease, descriptor) = self.grant(&handle)?;
        let (events, stream) = mpsc::channel(EVENT_QUEUE);
        let forward = Forward { leases: self.leases.clone(), lease: lease.id, events };
        tokio::spawn(forward.run(descriptor, news));
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

/// Passes one prompt's news on to its reader.
struct Forward {
    leases: Arc<LeaseTable>,
    lease: LeaseId,
    events: mpsc::Sender<Result<v1::PrefillEvent, Status>>,
}

impl Forward {
    /// The reader keeps the stream open until it has finished the lease. Whenever it goes, what is
    /// left of the lease is not wanted; on a finished lease this changes nothing.
    async fn run(self, granted: v1::KvDescriptor, mut news: News) {
        tokio::select! {
            biased;
            Ok(()) = self.forward(granted, &mut news) => self.events.closed().await,
            () = self.events.closed() => {}
        }
        self.leases.revoke(self.lease);
        self.leases.collect(Instant::now().into_std());
    }

    async fn forward(&self, granted: v1::KvDescriptor, news: &mut News) -> Result<(), ReaderGone> {
        let mut announced = 0;
        self.send(Kind::Granted(granted)).await?;
        while let Some(outputs) = news.next().await {
            for output in outputs {
                let is_last = output.token.is_some();
                // The token first: it goes to the client while blocks are still on their way.
                if let Some(token) = output.token {
                    self.send(Kind::FirstToken(v1::FirstToken {
                        token: Some(token),
                        cached_tokens: output.cached_tokens.unwrap_or(0) as u32,
                        finish: output.finish.unwrap_or_default().into(),
                    }))
                    .await?;
                }
                if !output.ready_blocks.is_empty() {
                    self.leases.announce(self.lease, &output.ready_blocks);
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

struct ReaderGone;

fn lease_of(reference: &v1::LeaseRef) -> Result<Lease, Status> {
    let capability = Capability::from_bytes(&reference.capability)
        .ok_or_else(|| Status::invalid_argument("a capability has 16 bytes"))?;
    Ok(Lease { id: LeaseId(reference.lease), capability })
}

fn refusal(error: HostError) -> Status {
    let message = error.to_string();
    match error {
        HostError::Refused(RefusedSequence::Invalid(_)) => Status::invalid_argument(message),
        HostError::Refused(RefusedSequence::Overloaded(_)) => Status::resource_exhausted(message),
        HostError::Stopped | HostError::ReservationLost => Status::unavailable(message),
    }
}
