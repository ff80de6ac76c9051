//! One request's way into the engine: by a prefill worker where the router named one, by computing
//! the prompt here otherwise, and whenever the other way fails.

use std::panic::AssertUnwindSafe;

use engine::RefusedSequence;
use futures::FutureExt;
use prost::Message;
use protocol::subjects;
use protocol::v1::{self, RequestUpdate};
use worker::HostError;

use crate::remote_prefill::{self, Failed};
use crate::request_context::{RequestContext, failure, news_of};

/// Brings a request to where the engine decodes it, or reports why that cannot be; also after a
/// panic, which is a defect and must not leave a client without an end.
pub async fn run(mut context: RequestContext, request: v1::GenerateRequest) {
    let number = request.request;
    if AssertUnwindSafe(submit(&mut context, request)).catch_unwind().await.is_err() {
        let failure = failure(v1::failure::Kind::Internal, "the request's task panicked".into());
        context.report(RequestUpdate { failure, ..news_of(number) }).await;
    }
}

async fn submit(context: &mut RequestContext, mut request: v1::GenerateRequest) {
    let number = request.request;
    let prefill = request.prefill.take();
    if let Err(error) = bring(context, &request, prefill).await {
        tracing::debug!(request_id = request.request_id, %error, "request refused");
        context.report(RequestUpdate { failure: failure_of(&error), ..news_of(number) }).await;
    }
}

async fn bring(
    context: &mut RequestContext,
    request: &v1::GenerateRequest,
    prefill: Option<v1::PrefillWorker>,
) -> Result<(), HostError> {
    let grammar = context.shared.grammars.get(&request.grammar).await;
    context.grammar = grammar.map_err(RefusedSequence::Grammar)?;
    match prefill {
        Some(worker) => via_prefill_worker(context, request, &worker).await,
        None => compute_here(context, request).await,
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
        context.shared.transfers.fail();
    }
    if error.is_suspicious() {
        let suspicion =
            v1::Suspicion { worker_id: worker.worker_id.clone(), incarnation: worker.incarnation };
        context.shared.bus.publish(subjects::SUSPECT, suspicion.encode_to_vec().into());
    }
    match (reservation, first_token) {
        (Some(reservation), first_token) => {
            let ended = context.shared.host.compute_reserved(reservation, first_token).await?;
            context.report_end(ended, request.request).await;
            Ok(())
        }
        (None, None) => compute_here(context, request).await,
        // From the start, the client would get its first token twice.
        (None, Some(_)) => Err(HostError::ReservationLost),
    }
}

async fn compute_here(
    context: &RequestContext,
    request: &v1::GenerateRequest,
) -> Result<(), HostError> {
    let sequence = context.sequence_request(request);
    context.shared.host.generate(sequence, context.outputs.clone()).await
}

fn failure_of(error: &HostError) -> Option<v1::Failure> {
    use v1::failure::Kind;
    let kind = match error {
        HostError::Refused(RefusedSequence::Invalid(_)) => Kind::Invalid,
        HostError::Refused(RefusedSequence::Overloaded(_)) => Kind::Overloaded,
        HostError::Refused(RefusedSequence::Grammar(_)) => Kind::Grammar,
        HostError::Stopped | HostError::ReservationLost => Kind::Internal,
    };
    failure(kind, error.to_string())
}
