//! One request's way into the engine: by a prefill worker where the router named one, by computing
//! the prompt here otherwise, and whenever the other way fails.

use std::sync::Arc;

use engine::{RefusedSequence, SequenceRequest};
use protocol::v1::{self, RequestUpdate};
use tokio::sync::mpsc;
use worker::{HostError, Outputs, SequenceHandle};

use crate::Context;
use crate::remote_prefill::{self, Failed};
use crate::session::news_of;

/// What a request's task works with.
pub struct RequestContext {
    /// The worker.
    pub shared: Arc<Context>,
    /// The request's sequence.
    pub sequence: SequenceHandle,
    /// Where the engine sends the sequence's tokens.
    pub outputs: Outputs,
    /// Where this task sends the request's news.
    pub updates: mpsc::Sender<RequestUpdate>,
}

/// Brings a request to where the engine decodes it, or reports why that cannot be.
pub async fn run(context: RequestContext, mut request: v1::GenerateRequest) {
    let number = request.request;
    let prefill = request.prefill.take();
    let submitted = match prefill {
        Some(worker) => via_prefill_worker(&context, &request, &worker).await,
        None => compute_here(&context, &request).await,
    };
    if let Err(error) = submitted {
        tracing::debug!(request_id = request.request_id, %error, "request refused");
        context.report(RequestUpdate { failure: failure_of(&error), ..news_of(number) }).await;
    }
}

async fn via_prefill_worker(
    context: &RequestContext,
    request: &v1::GenerateRequest,
    worker: &v1::PrefillWorker,
) -> Result<(), HostError> {
    let failed = match remote_prefill::run(context, request, worker).await {
        Ok(()) => return Ok(()),
        Err(failed) => failed,
    };
    let Failed { error, reservation, first_token } = failed;
    let (request_id, prefill_worker) = (&request.request_id, &worker.worker_id);
    if error.is_ordinary() {
        tracing::debug!(request_id, %error, "computing the prompt here");
    } else {
        tracing::warn!(request_id, prefill_worker, %error, "prefill failed, computing here");
    }
    match reservation {
        Some(reservation) => {
            let ended = context.shared.host.compute_reserved(reservation, first_token).await?;
            context.report_end(ended, request.request).await;
            Ok(())
        }
        None => compute_here(context, request).await,
    }
}

async fn compute_here(
    context: &RequestContext,
    request: &v1::GenerateRequest,
) -> Result<(), HostError> {
    let sequence = context.sequence_request(request);
    context.shared.host.generate(sequence, context.outputs.clone()).await
}

impl RequestContext {
    /// What the engine is asked.
    pub fn sequence_request(&self, request: &v1::GenerateRequest) -> SequenceRequest {
        SequenceRequest {
            id: self.sequence.id(),
            prompt: request.prompt_tokens.clone(),
            sampling: request.sampling.clone().unwrap_or_default(),
            stopping: request.stopping.clone().unwrap_or_default(),
            cache_salt: request.cache_salt.clone(),
        }
    }

    /// Sends news to the gateway. A session that ended takes this task with it.
    pub async fn report(&self, update: RequestUpdate) {
        let _session_ended = self.updates.send(update).await;
    }

    /// Where the engine found that the first token, given out without a finish, was the last: it
    /// has room for no more.
    pub async fn report_end(&self, ended: bool, request: u64) {
        if ended {
            let finish = v1::FinishReason::Length.into();
            self.report(RequestUpdate { finish, ..news_of(request) }).await;
        }
    }
}

/// A failure as it is told to the gateway.
pub fn failure(kind: v1::failure::Kind, message: String) -> Option<v1::Failure> {
    Some(v1::Failure { kind: kind.into(), message })
}

fn failure_of(error: &HostError) -> Option<v1::Failure> {
    use v1::failure::Kind;
    let kind = match error {
        HostError::Refused(RefusedSequence::Invalid(_)) => Kind::Invalid,
        HostError::Refused(RefusedSequence::Overloaded(_)) => Kind::Overloaded,
        HostError::Stopped => Kind::Internal,
    };
    failure(kind, error.to_string())
}
