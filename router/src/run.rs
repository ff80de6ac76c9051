//! The router as a component: feeds the core from the bus and answers routing requests.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use messaging::{Bus, Change, Network, Registry, Request, Watch};
use parking_lot::Mutex;
use prost::Message;
use protocol::{WorkerLife, hashes_from_bytes, subjects, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::worker_table::Time;

use crate::choice::Route;
use crate::core::{Core, NoRoute, Question};
use crate::prefix_index::Sync;
use crate::resync::{Resync, Snapshot};

/// A router on the bus.
pub struct Router {
    core: Arc<Mutex<Core>>,
    network: Network,
    feeds: Feeds,
}

impl Router {
    /// A router that knows no workers. Listens from here on, not only once it runs: a worker that
    /// starts later says nothing that is missed.
    pub fn new(network: Network) -> Self {
        let feeds = Feeds::new(&network.bus);
        Self { core: Arc::default(), network, feeds }
    }

    /// What it knows, for whoever wants to look at it.
    pub fn core(&self) -> Arc<Mutex<Core>> {
        self.core.clone()
    }

    /// Answers routing requests until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let registry = self.network.registry.clone();
        let mut resync = Resync::new(self.network.data_plane.clone());
        let began = Instant::now();
        let now = || began.elapsed().as_micros() as Time;
        let mut workers = begin_watch(&registry, &mut self.core.lock(), now());
        loop {
            let lost = tokio::select! {
                // Facts before questions: a question is answered by all that is known.
                biased;
                () = shutdown.cancelled() => return,
                change = workers.next() => match change {
                    Some(change) => apply_change(&mut self.core.lock(), change, now()),
                    // The watch lagged too far behind: begin anew from what is there.
                    None => {
                        workers = begin_watch(&registry, &mut self.core.lock(), now());
                        None
                    }
                },
                Some(message) = self.feeds.load.next() => {
                    apply_load(&mut self.core.lock(), &message, now())
                }
                Some(message) = self.feeds.kv_events.next() => {
                    apply_kv_events(&mut self.core.lock(), &message)
                }
                (worker, snapshot) = resync.next() => {
                    apply_snapshot(&mut self.core.lock(), worker, snapshot)
                }
                Some(request) = self.feeds.requests.next() => {
                    answer(&mut self.core.lock(), request, now());
                    None
                }
            };
            if let Some(worker) = lost
                && let Some(registration) = self.core.lock().registration(&worker)
            {
                resync.want(worker, registration);
            }
        }
    }
}

/// Watches from the present state on: what is not there any more is forgotten.
fn begin_watch(registry: &Registry, core: &mut Core, now: Time) -> Watch {
    let (present, watch) = registry.watch(subjects::WORKERS);
    let keys: HashSet<&str> = present.iter().map(|(key, _)| key.as_str()).collect();
    let known: Vec<WorkerLife> = core.workers().cloned().collect();
    for worker in known {
        if !keys.contains(subjects::worker_key(&worker).as_str()) {
            core.remove(&worker);
        }
    }
    for (key, value) in present {
        apply_change(core, Change::Put(key, value), now);
    }
    watch
}

struct Feeds {
    load: messaging::Subscription,
    kv_events: messaging::Subscription,
    requests: messaging::Requests,
}

impl Feeds {
    fn new(bus: &Bus) -> Self {
        Self {
            load: bus.subscribe(subjects::LOAD),
            kv_events: bus.subscribe(subjects::KV_EVENTS),
            requests: bus.respond(subjects::ROUTE),
        }
    }
}

/// Like those below: returns the worker whose snapshot has to be fetched, if any.
fn apply_change(core: &mut Core, change: Change, now: Time) -> Option<WorkerLife> {
    match change {
        Change::Put(key, value) => match v1::WorkerRegistration::decode(value) {
            Ok(registration) => core.register(registration, now),
            Err(error) => tracing::warn!(key, %error, "unreadable registration"),
        },
        Change::Deleted(key) => {
            if let Some(worker) = subjects::life_of_worker_key(&key) {
                core.remove(&worker);
            }
        }
    }
    None
}

fn apply_load(core: &mut Core, message: &Bytes, now: Time) -> Option<WorkerLife> {
    match v1::LoadReport::decode(message.clone()) {
        Ok(load) => {
            let worker = WorkerLife::new(&load.worker_id, load.incarnation);
            lost(core.report(load, now), worker)
        }
        Err(error) => {
            tracing::warn!(%error, "unreadable load report");
            None
        }
    }
}

fn apply_kv_events(core: &mut Core, message: &Bytes) -> Option<WorkerLife> {
    match v1::KvEvents::decode(message.clone()) {
        Ok(events) => {
            let worker = WorkerLife::new(&events.worker_id, events.incarnation);
            lost(core.kv_events(&events), worker)
        }
        Err(error) => {
            tracing::warn!(%error, "unreadable KV events");
            None
        }
    }
}

fn apply_snapshot(
    core: &mut Core,
    worker: WorkerLife,
    snapshot: Option<Snapshot>,
) -> Option<WorkerLife> {
    match snapshot {
        Some(Snapshot { next_sequence, hashes }) => {
            lost(core.kv_snapshot(&worker, next_sequence, hashes), worker)
        }
        // It is asked again for as long as it is there.
        None => Some(worker),
    }
}

fn lost(sync: Sync, worker: WorkerLife) -> Option<WorkerLife> {
    (sync == Sync::Lost).then(|| {
        tracing::info!(worker = %worker.id, "missed KV events, fetching a snapshot");
        worker
    })
}

fn answer(core: &mut Core, request: Request, now: Time) {
    let outcome = match v1::RouteRequest::decode(request.payload.clone()) {
        Ok(asked) => match core.route(&question_of(&asked), now) {
            Ok(route) => {
                tracing::debug!(
                    request_id = asked.request_id,
                    decode = %route.decode.id,
                    prefill = route.prefill.as_ref().map(|worker| worker.id.as_str()),
                    cached_blocks = route.cached_blocks,
                    predicted_ttft_us = route.cost.ttft_us,
                    "routed"
                );
                v1::route_reply::Outcome::Route(route_message(&route, asked.explain))
            }
            Err(NoRoute::NoWorker) => no_route("no worker serves this model"),
        },
        Err(_) => no_route("the routing request is unreadable"),
    };
    request.reply(v1::RouteReply { outcome: Some(outcome) }.encode_to_vec().into());
}

fn question_of(asked: &v1::RouteRequest) -> Question {
    let blocks = |prompt: &v1::PromptBlocks| {
        (prompt.numerics_id.clone(), hashes_from_bytes(&prompt.block_hashes).collect())
    };
    Question {
        model: asked.model.clone(),
        prompt_blocks: asked.prompt_blocks.iter().map(blocks).collect(),
        prompt_tokens: asked.prompt_tokens as usize,
        max_tokens: asked.max_tokens as usize,
    }
}

fn route_message(route: &Route, explain: bool) -> v1::Route {
    v1::Route {
        worker_id: route.decode.id.to_string(),
        incarnation: route.decode.incarnation.0,
        prefill_worker_id: route.prefill.as_ref().map_or(String::new(), |p| p.id.to_string()),
        prefill_incarnation: route.prefill.as_ref().map_or(0, |p| p.incarnation.0),
        cached_blocks: route.cached_blocks as u32,
        predicted_ttft_us: route.cost.ttft_us as u32,
        explanation: if explain { route.to_string() } else { String::new() },
    }
}

fn no_route(reason: &str) -> v1::route_reply::Outcome {
    v1::route_reply::Outcome::NoRoute(v1::NoRoute { reason: reason.to_string() })
}
