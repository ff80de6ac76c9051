//! The router as a component: feeds the core from the bus and answers routing requests.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use messaging::{Change, Network, Registry, Request, Watch};
use parking_lot::Mutex;
use prost::Message;
use protocol::{Incarnation, WorkerLife, hashes_from_bytes, subjects, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::choice::Route;
use crate::core::Core;
use crate::feeds::{Feeds, News};
use crate::prefix_index::Sync;
use crate::question::{NoRoute, Question};
use crate::resync::{Resync, Snapshot};
use crate::telling::Telling;
use crate::worker_table::Time;

/// Which router this is, and which of its lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterIdentity {
    /// Its name: [A-Za-z0-9_-]{1,64}.
    pub id: String,
    /// Its life.
    pub incarnation: Incarnation,
}

/// A router on the bus.
pub struct Router {
    core: Arc<Mutex<Core>>,
    network: Network,
    identity: RouterIdentity,
    feeds: Feeds,
}

impl Router {
    /// A router that knows no workers. Listens from here on, not only once it runs: a worker that
    /// starts later says nothing that is missed.
    pub fn new(network: Network, identity: RouterIdentity) -> Self {
        let feeds = Feeds::new(&network, &identity);
        Self { core: Arc::default(), network, identity, feeds }
    }

    /// What it knows, for whoever wants to look at it.
    pub fn core(&self) -> Arc<Mutex<Core>> {
        self.core.clone()
    }

    /// Registers, and answers routing questions until `shutdown`; then those that wait already, without
    /// the registry entry. That goes also when this future is dropped.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { core, network, identity, mut feeds } = self;
        let entry = RegistryEntry::put(&identity, &network.registry);
        let mut resync = Resync::new(network.data_plane.clone());
        let mut telling = Telling::new(&identity);
        let began = Instant::now();
        let now = || began.elapsed().as_micros() as Time;
        let mut workers = begin_watch(&network.registry, &mut core.lock(), now());
        while let Some(news) =
            shutdown.run_until_cancelled(feeds.next(&mut workers, &mut resync, &telling)).await
        {
            let lost = match news {
                News::Worker(None) => {
                    workers = begin_watch(&network.registry, &mut core.lock(), now());
                    None
                }
                News::TellingDue => {
                    telling.tell(&network.bus);
                    None
                }
                News::Question(question) => {
                    answer(&mut core.lock(), &mut telling, question, now());
                    None
                }
                News::Dispatches(message) => {
                    apply_dispatches(&mut core.lock(), &telling, &message, now());
                    None
                }
                fact => apply_fact(&mut core.lock(), fact, now()),
            };
            if let Some(worker) = lost
                && let Some(registration) = core.lock().registration(&worker)
            {
                resync.want(worker, registration);
            }
        }
        drop(entry);
        while let Some(question) = feeds.waiting_question() {
            answer(&mut core.lock(), &mut telling, question, now());
        }
    }
}

/// Watches from the present state on: what is not there any more is forgotten.
pub fn begin_watch(registry: &Registry, core: &mut Core, now: Time) -> Watch {
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

/// This router's entry, while it is held.
struct RegistryEntry {
    key: String,
    registry: Registry,
}

impl RegistryEntry {
    fn put(identity: &RouterIdentity, registry: &Registry) -> Self {
        let (router_id, incarnation) = (identity.id.clone(), identity.incarnation.0);
        let key = subjects::router_key(&router_id, incarnation);
        let registration = v1::RouterRegistration { router_id, incarnation };
        registry.put(&key, registration.encode_to_vec().into());
        Self { key, registry: registry.clone() }
    }
}

impl Drop for RegistryEntry {
    fn drop(&mut self) {
        self.registry.delete(&self.key);
    }
}

/// Like those below: returns the worker whose snapshot has to be fetched, if any.
pub fn apply_fact(core: &mut Core, fact: News, now: Time) -> Option<WorkerLife> {
    match fact {
        News::Load(message) => return apply_load(core, &message, now),
        News::KvEvents(message) => return apply_kv_events(core, &message),
        News::Snapshot(worker, snapshot) => return apply_snapshot(core, worker, snapshot),
        News::Worker(Some(change)) => apply_change(core, change, now),
        News::Suspicion(message) => apply_suspicion(core, &message, now),
        // These are not about workers, or need more than the core.
        News::Worker(None) | News::Dispatches(_) | News::TellingDue | News::Question(_) => {}
    }
    None
}

fn apply_change(core: &mut Core, change: Change, now: Time) {
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

fn apply_suspicion(core: &mut Core, message: &Bytes, now: Time) {
    match v1::Suspicion::decode(message.clone()) {
        Ok(suspicion) => {
            let worker = WorkerLife::new(&suspicion.worker_id, suspicion.incarnation);
            core.suspect(&worker, now);
        }
        Err(error) => tracing::warn!(%error, "unreadable suspicion"),
    }
}

fn apply_dispatches(core: &mut Core, telling: &Telling, message: &Bytes, now: Time) {
    match v1::Dispatches::decode(message.clone()) {
        Ok(message) => core.dispatched_elsewhere(telling.heard(&message), now),
        Err(error) => tracing::warn!(%error, "unreadable dispatches"),
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

fn answer(core: &mut Core, telling: &mut Telling, request: Request, now: Time) {
    let reply = match v1::RouteRequest::decode(request.payload.clone()) {
        Ok(asked) => {
            let decided = decide(core, &asked, now);
            if let Ok(route) = &decided {
                telling.add(route, asked.prompt_tokens);
            }
            reply_of(&decided, asked.explain)
        }
        Err(_) => no_route("the routing request is unreadable"),
    };
    request.reply(reply.encode_to_vec().into());
}

/// Chooses, and counts what was chosen.
pub fn decide(core: &mut Core, asked: &v1::RouteRequest, now: Time) -> Result<Route, NoRoute> {
    let route = core.route(&question_of(asked), now)?;
    tracing::debug!(
        request_id = asked.request_id,
        decode = %route.decode.id,
        prefill = route.prefill.as_ref().map(|worker| worker.id.as_str()),
        cached_blocks = route.cached_blocks,
        predicted_ttft_us = route.cost.ttft_us,
        "routed"
    );
    Ok(route)
}

/// What the gateway is told.
pub fn reply_of(decided: &Result<Route, NoRoute>, explain: bool) -> v1::RouteReply {
    match decided {
        Ok(route) => {
            let outcome = v1::route_reply::Outcome::Route(route_message(route, explain));
            v1::RouteReply { outcome: Some(outcome) }
        }
        Err(reason) => no_route(&reason.to_string()),
    }
}

fn question_of(asked: &v1::RouteRequest) -> Question {
    let blocks = |prompt: &v1::PromptBlocks| {
        (prompt.numerics_id.clone(), hashes_from_bytes(&prompt.block_hashes).collect())
    };
    let life = |worker: &v1::WorkerRef| WorkerLife::new(&worker.worker_id, worker.incarnation);
    Question {
        model: asked.model.clone(),
        prompt_blocks: asked.prompt_blocks.iter().map(blocks).collect(),
        prompt_tokens: asked.prompt_tokens as usize,
        max_tokens: asked.max_tokens as usize,
        excluded: asked.excluded.iter().map(life).collect(),
        preferred_numerics_id: asked.preferred_numerics_id.clone(),
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

fn no_route(reason: &str) -> v1::RouteReply {
    let outcome = v1::route_reply::Outcome::NoRoute(v1::NoRoute { reason: reason.to_string() });
    v1::RouteReply { outcome: Some(outcome) }
}
