//! A request's way to a worker: hash its blocks, ask a router, open the stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use messaging::Network;
use prost::Message;
use protocol::v1::{self, route_reply::Outcome};
use protocol::{BlockHasher, WorkerLife, hashes_to_bytes, subjects};
use router::Fallback;
use tokio::time::Instant;

use crate::migration::Migrations;
use crate::models::{Models, Numerics};
use crate::openai::ApiError;
use crate::routers::Routers;
use crate::sessions::{Lost, RequestStream, SessionError, Sessions};

/// When to come back while no worker is there.
const NO_WORKER_RETRY_S: u64 = 1;

/// While no worker can take a request: how long a new one is kept that a worker failed, and how long one
/// that has been answered in part. Another life of a worker may come meanwhile.
const PATIENCE_NEW: Duration = Duration::from_millis(500);
const PATIENCE_CONTINUED: Duration = Duration::from_secs(10);

/// Between two looks for a worker.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A request in tokens.
#[derive(Clone)]
pub struct Prompt {
    /// Which model is to answer.
    pub model: String,
    /// For logs and traces.
    pub request_id: String,
    /// The prompt. Shared, as is the grammar: a request may have thousands of choices.
    pub tokens: Arc<[u32]>,
    /// What there is of the answer.
    pub generated: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: v1::Sampling,
    /// When to stop.
    pub stopping: v1::Stopping,
    /// Separates prefix caches.
    pub cache_salt: String,
    /// What the answer must match (`grammar::Compiler`); empty: anything.
    pub grammar: Arc<str>,
    /// Which field of the request asked for the grammar.
    pub grammar_param: Arc<str>,
    /// Alternatives to report beside each of the prompt's own tokens; none: no report.
    pub prompt_logprobs: Option<u32>,
    /// Lower is earlier, at each worker.
    pub priority: i32,
    /// A worker that has the prompt's blocks: it is tried first, without asking a router.
    pub near: Option<WorkerLife>,
    /// Whether the client wants to know why it went where it went.
    pub explain: bool,
}

impl Prompt {
    /// What a worker must know to do this.
    fn needed_features(&self) -> Vec<&'static str> {
        let needs = [
            (protocol::FEATURE_GRAMMAR, !self.grammar.is_empty()),
            (protocol::FEATURE_PROMPT_LOGPROBS, self.prompt_logprobs.is_some()),
        ];
        needs.into_iter().filter_map(|(feature, needs)| needs.then_some(feature)).collect()
    }

    fn can_go_to(&self, worker: &v1::WorkerRegistration) -> bool {
        let has = |feature: &&str| worker.features.iter().any(|present| present == feature);
        self.needed_features().iter().all(has)
    }
}

/// Gives requests to workers.
pub struct Dispatcher {
    network: Network,
    models: Arc<Models>,
    sessions: Sessions,
    routers: Routers,
    fallback: Fallback,
    /// What became of requests whose worker failed.
    pub migrations: Migrations,
    fallback_decisions: AtomicU64,
}

/// Where a request was placed.
pub struct Placed {
    /// Its news.
    pub stream: RequestStream,
    /// The worker that has it.
    pub worker: WorkerLife,
    /// Under which arithmetic it is computed.
    pub numerics_id: String,
    /// Why it went there; empty unless asked for.
    pub explanation: String,
}

/// Why a worker is not asked again for the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its session ended: it died, or was cut off.
    Connection,
    /// Nothing was heard of it.
    Silent,
    /// Its engine is stuck in a step.
    Hung,
    /// It is about to leave.
    Leaving,
    /// It has no room.
    Overloaded,
    /// It gave the request up, or refused what another one began.
    Failed,
}

impl Cause {
    /// All of them, each at the place of its number.
    pub const ALL: [Self; 6] =
        [Self::Connection, Self::Silent, Self::Hung, Self::Leaving, Self::Overloaded, Self::Failed];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Silent => "silent",
            Self::Hung => "hung",
            Self::Leaving => "leaving",
            Self::Overloaded => "overloaded",
            Self::Failed => "failed",
        }
    }

    /// Whether others had better not be sent there either.
    fn is_suspicious(self) -> bool {
        matches!(self, Self::Connection | Self::Silent | Self::Hung)
    }
}

impl From<Lost> for Cause {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Ended => Self::Connection,
            Lost::Silent => Self::Silent,
            Lost::Hung => Self::Hung,
        }
    }
}

/// The workers that failed a request, and since when it has been without one.
#[derive(Default)]
pub struct Excluded {
    workers: Vec<(WorkerLife, Cause)>,
    since: Option<Instant>,
}

impl Excluded {
    /// Another one.
    pub fn add(&mut self, worker: WorkerLife, cause: Cause) {
        self.workers.push((worker, cause));
        self.since.get_or_insert_with(Instant::now);
    }

    /// A worker goes on with the request.
    pub fn recovered(&mut self) {
        self.since = None;
    }

    /// For how long it has been without a worker; none where no worker failed it.
    pub fn waited(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }

    /// One that will not do, through no fault of its own.
    fn set_aside(&mut self, worker: WorkerLife) {
        if self.allows(&worker) {
            self.workers.push((worker, Cause::Failed));
        }
    }

    fn allows(&self, worker: &WorkerLife) -> bool {
        !self.workers.iter().any(|(other, _)| other == worker)
    }

    fn lives(&self) -> Vec<v1::WorkerRef> {
        let reference = |(worker, _): &(WorkerLife, Cause)| v1::WorkerRef {
            worker_id: worker.id.to_string(),
            incarnation: worker.incarnation.0,
        };
        self.workers.iter().map(reference).collect()
    }

    /// Where nobody else is left, all but those that will not do are tried again: room may have come,
    /// and a connection that broke need not mean that its worker died.
    fn forgive(&mut self) {
        self.workers.retain(|(_, cause)| *cause == Cause::Failed);
    }
}

impl Dispatcher {
    /// A dispatcher without connections.
    pub fn new(network: Network, models: Arc<Models>, migrations: Migrations) -> Self {
        Self {
            migrations,
            sessions: Sessions::new(network.data_plane.clone()),
            network,
            models,
            routers: Routers::default(),
            fallback: Fallback::default(),
            fallback_decisions: AtomicU64::new(0),
        }
    }

    /// Learns of routers, and of workers for when there are none, for as long as it is polled.
    pub async fn follow(&self) {
        tokio::join!(self.routers.follow(&self.network), self.fallback.follow(&self.network));
    }

    /// Routers known.
    pub fn routers(&self) -> usize {
        self.routers.len()
    }

    /// Decisions made here, because no router answered.
    pub fn fallback_decisions(&self) -> u64 {
        self.fallback_decisions.load(Ordering::Relaxed)
    }

    /// Gives a request to the worker that a router chooses, and to another one where that fails.
    /// `preferred`: under which arithmetic it began.
    pub async fn place(
        &self,
        prompt: &Prompt,
        preferred: &str,
        excluded: &mut Excluded,
    ) -> Result<Placed, ApiError> {
        let patience = if prompt.generated.is_empty() { PATIENCE_NEW } else { PATIENCE_CONTINUED };
        let mut numerics = self.models.numerics_of(&prompt.model);
        let mut prompt_blocks = self.hash_blocks(prompt, &numerics);
        self.exclude_unable(prompt, excluded)?;
        let mut near = prompt.near.as_ref().filter(|near| excluded.allows(near));
        loop {
            let waited = excluded.waited();
            let given_up = waited.is_some_and(|waited| waited > PATIENCE_CONTINUED);
            let route = match (given_up, near.take()) {
                (false, Some(near)) => Some(route_to(near)),
                (false, None) => self.route(prompt, &prompt_blocks, preferred, excluded).await,
                (true, _) => None,
            };
            let Some(route) = route else {
                // Where nobody failed, nobody is there.
                if waited.is_none_or(|waited| waited > patience) {
                    return Err(ApiError::overloaded(NO_WORKER_RETRY_S));
                }
                excluded.forgive();
                tokio::time::sleep(RETRY_INTERVAL).await;
                let present = self.models.numerics_of(&prompt.model);
                if present != numerics {
                    prompt_blocks = self.hash_blocks(prompt, &present);
                    numerics = present;
                }
                continue;
            };
            let life = WorkerLife::new(&route.worker_id, route.incarnation);
            let Some(worker) = self.models.worker(&life) else {
                // A router may know a worker a moment before or after this gateway does.
                tracing::debug!(worker = %life.id, "the chosen worker is not known here");
                excluded.add(life, Cause::Overloaded);
                continue;
            };
            if !prompt.can_go_to(&worker) {
                // It came only now, and is of an earlier version.
                excluded.add(life, Cause::Failed);
                continue;
            }
            match self.start(prompt, &route, &life, &worker).await {
                Ok(stream) => {
                    let (numerics_id, explanation) = (worker.numerics_id, route.explanation);
                    return Ok(Placed { stream, worker: life, numerics_id, explanation });
                }
                Err(error) => {
                    let worker = &life.id;
                    // While nobody else is left, each request tries it again and again.
                    if self.blame(&life, Cause::Connection) {
                        tracing::warn!(%worker, %error, "cannot give the worker a request");
                    } else {
                        tracing::debug!(%worker, %error, "cannot give the worker a request");
                    }
                    excluded.add(life, Cause::Connection);
                }
            }
        }
    }

    /// Workers of an earlier version would answer without what the request needs. Errors: all are.
    fn exclude_unable(&self, prompt: &Prompt, excluded: &mut Excluded) -> Result<(), ApiError> {
        let needed = prompt.needed_features();
        if needed.is_empty() {
            return Ok(());
        }
        let (able, unable) = self.models.workers_with(&prompt.model, &needed);
        if able == 0 && !unable.is_empty() {
            return Err(ApiError::no_worker_can(&needed));
        }
        unable.into_iter().for_each(|worker| excluded.set_aside(worker));
        Ok(())
    }

    async fn start(
        &self,
        prompt: &Prompt,
        route: &v1::Route,
        life: &WorkerLife,
        worker: &v1::WorkerRegistration,
    ) -> Result<RequestStream, SessionError> {
        let prefill = match route.prefill_worker_id.as_str() {
            "" => None,
            // Only who decodes it reports on it.
            _ if prompt.prompt_logprobs.is_some() => None,
            id => self.prefill_worker(prompt, id, route.prefill_incarnation),
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
            request_id: prompt.request_id.clone(),
            prompt_tokens: prompt.tokens.to_vec(),
            sampling: Some(prompt.sampling.clone()),
            stopping: Some(prompt.stopping.clone()),
            prefill,
            cache_salt: prompt.cache_salt.clone(),
            generated_tokens: prompt.generated.clone(),
            grammar: prompt.grammar.to_string(),
            prompt_logprobs: prompt.prompt_logprobs,
            priority: prompt.priority,
        };
        self.sessions.start(life, &worker.data_endpoint, request).await
    }

    /// Tells the routers that a worker had better not be chosen, if that is so. Returns whether that is
    /// news here.
    pub fn blame(&self, worker: &WorkerLife, cause: Cause) -> bool {
        if cause.is_suspicious() {
            let is_news = self.fallback.suspect(worker);
            let suspicion = v1::Suspicion {
                worker_id: worker.id.to_string(),
                incarnation: worker.incarnation.0,
            };
            self.network.bus.publish(subjects::SUSPECT, suspicion.encode_to_vec().into());
            return is_news;
        }
        false
    }

    fn hash_blocks(&self, prompt: &Prompt, numerics: &Numerics) -> Vec<v1::PromptBlocks> {
        let all: Vec<u32> = prompt.tokens.iter().chain(&prompt.generated).copied().collect();
        let blocks_under = |(numerics_id, block_size): &(String, usize)| {
            let hasher = BlockHasher::new(numerics_id, &prompt.cache_salt, *block_size);
            let block_hashes = hashes_to_bytes(&hasher.blocks(&all));
            v1::PromptBlocks { numerics_id: numerics_id.clone(), block_hashes }
        };
        numerics.iter().map(blocks_under).collect()
    }

    /// Asks routers, and decides here where none answers, or where one that has just begun knows of no
    /// worker. None: nobody can take the
    /// request.
    async fn route(
        &self,
        prompt: &Prompt,
        prompt_blocks: &[v1::PromptBlocks],
        preferred: &str,
        excluded: &Excluded,
    ) -> Option<v1::Route> {
        let question = v1::RouteRequest {
            request_id: prompt.request_id.clone(),
            model: prompt.model.clone(),
            prompt_blocks: prompt_blocks.to_vec(),
            prompt_tokens: (prompt.tokens.len() + prompt.generated.len()) as u32,
            max_tokens: prompt.stopping.max_tokens,
            explain: prompt.explain,
            excluded: excluded.lives(),
            preferred_numerics_id: preferred.to_string(),
        };
        let reply = self.routers.ask(&self.network, &question.encode_to_vec().into()).await;
        if reply.is_none() {
            self.fallback_decisions.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(Outcome::Route(route)) = reply.and_then(|reply| reply.outcome) {
            return Some(route);
        }
        match self.fallback.route(&question).outcome {
            Some(Outcome::Route(route)) => Some(route),
            Some(Outcome::NoRoute(no_route)) => {
                tracing::info!(model = prompt.model, reason = no_route.reason, "no route");
                None
            }
            None => None,
        }
    }

    /// Where the router knows a prefill worker before this gateway does, the decode worker
    /// computes the prompt itself.
    fn prefill_worker(
        &self,
        prompt: &Prompt,
        id: &str,
        incarnation: u64,
    ) -> Option<v1::PrefillWorker> {
        let worker = self.models.worker(&WorkerLife::new(id, incarnation))?;
        let worker = Some(worker).filter(|worker| prompt.can_go_to(worker))?;
        Some(v1::PrefillWorker {
            worker_id: worker.worker_id,
            incarnation: worker.incarnation,
            data_endpoint: worker.data_endpoint,
        })
    }
}

/// To a worker that has the prompt's blocks already.
fn route_to(worker: &WorkerLife) -> v1::Route {
    v1::Route {
        worker_id: worker.id.to_string(),
        incarnation: worker.incarnation.0,
        ..Default::default()
    }
}
