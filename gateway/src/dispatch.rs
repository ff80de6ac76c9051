//! A request's way to a worker: hash its blocks, ask the router, open the stream.

use std::sync::Arc;
use std::time::Duration;

use messaging::Network;
use prost::Message;
use protocol::v1::{self, route_reply::Outcome};
use protocol::{BlockHasher, WorkerLife, hashes_to_bytes, subjects};

use crate::models::Models;
use crate::openai::ApiError;
use crate::sessions::{RequestStream, Sessions};

/// A router answers in far less.
const ROUTE_TIMEOUT: Duration = Duration::from_millis(500);

/// When to come back while no worker is there.
const NO_WORKER_RETRY_S: u64 = 1;

/// A request in tokens.
pub struct Prompt {
    /// Which model is to answer.
    pub model: String,
    /// For logs and traces.
    pub request_id: String,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: v1::Sampling,
    /// When to stop.
    pub stopping: v1::Stopping,
    /// Separates prefix caches.
    pub cache_salt: String,
    /// Whether the client wants to know why it went where it went.
    pub explain: bool,
}

/// Gives requests to workers.
pub struct Dispatcher {
    network: Network,
    models: Arc<Models>,
    sessions: Sessions,
}

/// A request that a worker has.
pub struct Dispatched {
    /// Its news.
    pub stream: RequestStream,
    /// Under which arithmetic it is computed.
    pub numerics_id: String,
    /// Why it went there; empty unless asked for.
    pub explanation: String,
}

impl Dispatcher {
    /// A dispatcher without connections.
    pub fn new(network: Network, models: Arc<Models>) -> Self {
        let sessions = Sessions::new(network.data_plane.clone());
        Self { network, models, sessions }
    }

    /// Gives a request to the worker that the router chooses.
    pub async fn dispatch(&self, prompt: Prompt) -> Result<Dispatched, ApiError> {
        let route = self.route(&prompt).await?;
        let life = WorkerLife::new(&route.worker_id, route.incarnation);
        let worker = self.worker(&life)?;
        let prefill = match route.prefill_worker_id.as_str() {
            "" => None,
            id => self.prefill_worker(id, route.prefill_incarnation),
        };
        tracing::debug!(
            request_id = prompt.request_id,
            decode = %life.id,
            prefill = route.prefill_worker_id,
            cached_blocks = route.cached_blocks,
            predicted_ttft_us = route.predicted_ttft_us,
            "dispatched"
        );
        let request = v1::GenerateRequest {
            request: 0,
            request_id: prompt.request_id,
            prompt_tokens: prompt.tokens,
            sampling: Some(prompt.sampling),
            stopping: Some(prompt.stopping),
            prefill,
            cache_salt: prompt.cache_salt,
            generated_tokens: Vec::new(),
        };
        let started = self.sessions.start(&life, &worker.data_endpoint, request).await;
        let stream = started.map_err(|error| {
            tracing::warn!(worker = %life.id, %error, "cannot give the worker a request");
            ApiError::overloaded(NO_WORKER_RETRY_S)
        })?;
        let explanation = route.explanation;
        Ok(Dispatched { stream, numerics_id: worker.numerics_id, explanation })
    }

    async fn route(&self, prompt: &Prompt) -> Result<v1::Route, ApiError> {
        let numerics = self.models.numerics_of(&prompt.model);
        let blocks_under = |(numerics_id, block_size): &(String, usize)| {
            let hasher = BlockHasher::new(numerics_id, &prompt.cache_salt, *block_size);
            let block_hashes = hashes_to_bytes(&hasher.blocks(&prompt.tokens));
            v1::PromptBlocks { numerics_id: numerics_id.clone(), block_hashes }
        };
        let request = v1::RouteRequest {
            request_id: prompt.request_id.clone(),
            model: prompt.model.clone(),
            prompt_blocks: numerics.iter().map(blocks_under).collect(),
            prompt_tokens: prompt.tokens.len() as u32,
            max_tokens: prompt.stopping.max_tokens,
            explain: prompt.explain,
            excluded: Vec::new(),
            preferred_numerics_id: String::new(),
        };
        let payload = request.encode_to_vec().into();
        let reply = self.network.bus.request(subjects::ROUTE, payload, ROUTE_TIMEOUT).await;
        let reply = reply.map_err(|error| {
            tracing::warn!(%error, "no router answers");
            ApiError::overloaded(NO_WORKER_RETRY_S)
        })?;
        match v1::RouteReply::decode(reply).map(|reply| reply.outcome) {
            Ok(Some(Outcome::Route(route))) => Ok(route),
            Ok(Some(Outcome::NoRoute(no_route))) => {
                tracing::warn!(model = prompt.model, reason = no_route.reason, "no route");
                Err(ApiError::overloaded(NO_WORKER_RETRY_S))
            }
            Ok(None) | Err(_) => {
                tracing::error!("the router's answer is unreadable");
                Err(ApiError::internal())
            }
        }
    }

    /// Where the router knows a prefill worker before this gateway does, the decode worker
    /// computes the prompt itself.
    fn prefill_worker(&self, id: &str, incarnation: u64) -> Option<v1::PrefillWorker> {
        let worker = self.models.worker(&WorkerLife::new(id, incarnation))?;
        Some(v1::PrefillWorker {
            worker_id: worker.worker_id,
            incarnation: worker.incarnation,
            data_endpoint: worker.data_endpoint,
        })
    }

    /// A router may know a worker a moment before or after this gateway does.
    fn worker(&self, life: &WorkerLife) -> Result<v1::WorkerRegistration, ApiError> {
        self.models.worker(life).ok_or_else(|| {
            tracing::warn!(worker = %life.id, "the router chose a worker that is not registered");
            ApiError::overloaded(NO_WORKER_RETRY_S)
        })
    }
}
