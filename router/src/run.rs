//! The router as a component: feeds the core from the bus and answers routing requests.

use std::collections::HashSet;
use std::time::Instant;

use bytes::Bytes;
use messaging::{Bus, Change, Network, Registry, Request, Watch};
use prost::Message;
use protocol::{WorkerLife, hashes_from_bytes, subjects, v1};
use tokio_util::sync::CancellationToken;

use crate::core::{Core, NoRoute, Question, Route};

/// Answers routing requests until `shutdown`. Listens from the call on, not only from the first
/// poll: a worker that starts later says nothing that is missed.
pub fn run(network: Network, shutdown: CancellationToken) -> impl Future<Output = ()> + Send {
    let feeds = Feeds::new(&network.bus);
    serve(network.registry, feeds, shutdown)
}

async fn serve(registry: Registry, mut feeds: Feeds, shutdown: CancellationToken) {
    let mut core = Core::default();
    let mut workers = begin_watch(&registry, &mut core);
    loop {
        tokio::select! {
            // Facts before questions: a question is answered by all that is known.
            biased;
            () = shutdown.cancelled() => return,
            change = workers.next() => match change {
                Some(change) => apply_change(&mut core, change),
                // The watch lagged too far behind: begin anew from what is there.
                None => workers = begin_watch(&registry, &mut core),
            },
            Some(message) = feeds.load.next() => apply_load(&mut core, &message),
            Some(message) = feeds.kv_events.next() => apply_kv_events(&mut core, &message),
            Some(request) = feeds.requests.next() => answer(&mut core, request),
        }
    }
}

/// Watches from the present state on: what is not there any more is forgotten.
fn begin_watch(registry: &Registry, core: &mut Core) -> Watch {
    let (present, watch) = registry.watch(subjects::WORKERS);
    let keys: HashSet<&str> = present.iter().map(|(key, _)| key.as_str()).collect();
    let known: Vec<WorkerLife> = core.workers().cloned().collect();
    for worker in known {
        if !keys.contains(subjects::worker_key(&worker).as_str()) {
            core.remove(&worker);
        }
    }
    for (key, value) in present {
        apply_change(core, Change::Put(key, value));
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

fn apply_change(core: &mut Core, change: Change) {
    match change {
        Change::Put(key, value) => match v1::WorkerRegistration::decode(value) {
            Ok(registration) => core.register(registration, Instant::now()),
            Err(error) => tracing::warn!(key, %error, "unreadable registration"),
        },
        Change::Deleted(key) => {
            if let Some(worker) = subjects::life_of_worker_key(&key) {
                core.remove(&worker);
            }
        }
    }
}

fn apply_load(core: &mut Core, message: &Bytes) {
    match v1::LoadReport::decode(message.clone()) {
        Ok(load) => core.report(load, Instant::now()),
        Err(error) => tracing::warn!(%error, "unreadable load report"),
    }
}

fn apply_kv_events(core: &mut Core, message: &Bytes) {
    match v1::KvEvents::decode(message.clone()) {
        Ok(events) => {
            if core.kv_events(&events) {
                tracing::warn!(worker = events.worker_id, "missed KV events, its index is anew");
            }
        }
        Err(error) => tracing::warn!(%error, "unreadable KV events"),
    }
}

fn answer(core: &mut Core, request: Request) {
    let outcome = match v1::RouteRequest::decode(request.payload.clone()) {
        Ok(asked) => match core.route(&question_of(&asked), Instant::now()) {
            Ok(route) => {
                tracing::debug!(
                    request_id = asked.request_id,
                    decode = %route.decode.id,
                    prefill = route.prefill.as_ref().map(|worker| worker.id.as_str()),
                    cached_blocks = route.cached_blocks,
                    predicted_ttft_us = route.cost.ttft_us,
                    "routed"
                );
                v1::route_reply::Outcome::Route(route_message(&route))
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
    }
}

fn route_message(route: &Route) -> v1::Route {
    v1::Route {
        worker_id: route.decode.id.to_string(),
        incarnation: route.decode.incarnation.0,
        prefill_worker_id: route.prefill.as_ref().map_or(String::new(), |p| p.id.to_string()),
        prefill_incarnation: route.prefill.as_ref().map_or(0, |p| p.incarnation.0),
        cached_blocks: route.cached_blocks as u32,
        predicted_ttft_us: route.cost.ttft_us as u32,
    }
}

fn no_route(reason: &str) -> v1::route_reply::Outcome {
    v1::route_reply::Outcome::NoRoute(v1::NoRoute { reason: reason.to_string() })
}
