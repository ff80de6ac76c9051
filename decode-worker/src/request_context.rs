//! What a request's task works with, and how it reports.

use std::sync::Arc;

use engine::SequenceRequest;
use grammar::Grammar;
use protocol::v1::{self, RequestUpdate};
use tokio::sync::mpsc;
use worker::{Outputs, SequenceHandle};

use crate::Context;

/// What a request's task works with.
pub struct RequestContext {
    /// The worker.
    pub shared: Arc<Context>,
    /// The request's sequence.
    pub sequence: SequenceHandle,
    /// Where the engine sends the sequence's tokens.
    pub outputs: Outputs,
    /// What the answer must match.
    pub grammar: Option<Grammar>,
    /// Where this task sends the request's news.
    pub updates: mpsc::Sender<RequestUpdate>,
}

impl RequestContext {
    /// What the engine is asked.
    pub fn sequence_request(&self, request: &v1::GenerateRequest) -> SequenceRequest {
        SequenceRequest {
            id: self.sequence.id(),
            prompt: request.prompt_tokens.clone(),
            generated: request.generated_tokens.clone(),
            sampling: request.sampling.clone().unwrap_or_default(),
            stopping: request.stopping.clone().unwrap_or_default(),
            cache_salt: request.cache_salt.clone(),
            grammar: self.grammar.clone(),
            prompt_logprobs: request.prompt_logprobs,
            priority: request.priority,
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

/// An update without news.
pub fn news_of(request: u64) -> RequestUpdate {
    RequestUpdate { request, ..Default::default() }
}
