//! Routers on an in-process network, under a paused clock: named, sharing load, told of workers that
//! are suspected, drain or live again.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use messaging::{Change, Network};
use prost::Message;
use protocol::v1::{self, Role, route_reply::Outcome};
use protocol::{Incarnation, WorkerLife, subjects};
use router::{Router, RouterIdentity};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Routers tell each other every 20 ms.
const TOLD: Duration = Duration::from_millis(25);

/// Gateways wait no longer.
const ROUTE_TIMEOUT: Duration = Duration::from_millis(50);

/// A cluster's control and event planes, without workers: the tests speak for those.
struct Cluster {
    network: Network,
    shutdown: CancellationToken,
}

impl Cluster {
    fn new() -> Self {
        Self { network: Network::default(), shutdown: CancellationToken::new() }
    }

    /// Starts a router with this name, and waits until it has taken in what was said so far.
    async fn start_router(&self, id: &str) -> JoinHandle<()> {
        let identity = RouterIdentity { id: id.into(), incarnation: Incarnation(1) };
        let router = Router::new(self.network.clone(), identity);
        let running = tokio::spawn(router.run(self.shutdown.clone()));
        self.ask(id, &question()).await;
        running
    }

    fn register(&self, worker: &v1::WorkerRegistration) {
        let life = WorkerLife::new(&worker.worker_id, worker.incarnation);
        self.network.registry.put(&subjects::worker_key(&life), worker.encode_to_vec().into());
    }

    fn publish(&self, subject: &str, message: &impl Message) {
        self.network.bus.publish(subject, message.encode_to_vec().into());
    }

    async fn ask(&self, router: &str, question: &v1::RouteRequest) -> Outcome {
        let subject = subjects::route(router, 1);
        let payload = question.encode_to_vec().into();
        let reply = self.network.bus.request(&subject, payload, ROUTE_TIMEOUT).await.unwrap();
        v1::RouteReply::decode(reply).unwrap().outcome.unwrap()
    }

    /// Who decodes, as the router decides; or why nobody does.
    async fn decoder(&self, router: &str, question: &v1::RouteRequest) -> String {
        match self.ask(router, question).await {
            Outcome::Route(route) => format!("{}/{}", route.worker_id, route.incarnation),
            Outcome::NoRoute(none) => none.reason,
        }
    }
}

fn worker(worker_id: &str, incarnation: u64) -> v1::WorkerRegistration {
    v1::WorkerRegistration {
        worker_id: worker_id.into(),
        incarnation,
        role: Role::Decode.into(),
        model: "m".into(),
        numerics_id: "n".into(),
        block_size: 16,
        kv_blocks: 1000,
        block_bytes: 1 << 16,
        max_num_batched_tokens: 512,
        ..Default::default()
    }
}

fn question() -> v1::RouteRequest {
    let blocks = v1::PromptBlocks { numerics_id: "n".into(), ..Default::default() };
    v1::RouteRequest {
        model: "m".into(),
        prompt_blocks: vec![blocks],
        prompt_tokens: 500,
        max_tokens: 50,
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn routers_share_load_by_what_they_tell_each_other() {
    let cluster = Cluster::new();
    cluster.start_router("a").await;
    cluster.start_router("b").await;
    cluster.register(&worker("d", 1));
    cluster.register(&worker("e", 1));
    // Had they not told each other: d, d, e, e. Had one heard itself: d, e, e, d.
    for (router, expected) in [("a", "d/1"), ("b", "e/1"), ("a", "d/1"), ("b", "e/1")] {
        assert_eq!(cluster.decoder(router, &question()).await, expected, "as {router} says");
        tokio::time::sleep(TOLD).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_dispatched_is_told_at_once_and_once() {
    let cluster = Cluster::new();
    cluster.start_router("a").await;
    cluster.register(&worker("d", 1));
    let mut told = cluster.network.bus.subscribe(subjects::DISPATCHES);
    for _ in 0..10 {
        cluster.decoder("a", &question()).await;
    }
    let message = tokio::time::timeout(TOLD, told.next()).await.unwrap().unwrap();
    let message = v1::Dispatches::decode(message).unwrap();
    assert_eq!((message.router_id.as_str(), message.incarnation), ("a", 1));
    assert_eq!(message.dispatches.len(), 10);
    let first = &message.dispatches[0];
    assert_eq!((first.worker_id.as_str(), first.worker_incarnation), ("d", 1));
    assert_eq!(first.prompt_tokens, 500);
    assert!(first.prefill_us > 1_000.0, "{first:?}");
    let more = tokio::time::timeout(Duration::from_secs(10), told.next()).await;
    assert!(more.is_err(), "nothing was dispatched since");
}

#[tokio::test(start_paused = true)]
async fn suspicions_drains_and_exclusions_keep_requests_away() {
    let cluster = Cluster::new();
    cluster.start_router("a").await;
    assert_eq!(cluster.decoder("a", &question()).await, "no worker serves this model");
    cluster.register(&worker("d", 1));
    cluster.register(&worker("e", 1));
    let suspicion = |worker_id: &str| v1::Suspicion { worker_id: worker_id.into(), incarnation: 1 };
    cluster.publish(subjects::SUSPECT, &suspicion("d"));
    for _ in 0..3 {
        assert_eq!(cluster.decoder("a", &question()).await, "e/1");
    }
    cluster.register(&v1::WorkerRegistration { draining: true, ..worker("e", 1) });
    assert_eq!(cluster.decoder("a", &question()).await, "d/1", "rather a suspected one");
    let excluded = vec![v1::WorkerRef { worker_id: "d".into(), incarnation: 1 }];
    let excluding = v1::RouteRequest { excluded, ..question() };
    let nobody = "all workers that serve this model were excluded";
    assert_eq!(cluster.decoder("a", &excluding).await, nobody);
    cluster.register(&v1::WorkerRegistration { draining: true, ..worker("d", 1) });
    let nobody = "all workers that serve this model are about to leave";
    assert_eq!(cluster.decoder("a", &question()).await, nobody);
    cluster.register(&worker("d", 2));
    assert_eq!(cluster.decoder("a", &excluding).await, "d/2", "another life of it");
    cluster.network.registry.delete(&subjects::worker_key(&WorkerLife::new("d", 1)));
    assert_eq!(cluster.decoder("a", &question()).await, "d/2");
}

#[tokio::test(start_paused = true)]
async fn a_router_is_registered_while_it_runs() {
    let cluster = Cluster::new();
    let (present, mut routers) = cluster.network.registry.watch(subjects::ROUTERS);
    assert_eq!(present, []);
    let running = cluster.start_router("a").await;
    let key = subjects::router_key("a", 1);
    match routers.next().await {
        Some(Change::Put(put, value)) if put == key => {
            let expected = v1::RouterRegistration { router_id: "a".into(), incarnation: 1 };
            assert_eq!(v1::RouterRegistration::decode(value), Ok(expected));
        }
        other => panic!("{other:?}"),
    }
    // A question that waits when the router is told to end is answered all the same.
    let nobody = question();
    let (answered, ()) =
        tokio::join!(cluster.decoder("a", &nobody), async { cluster.shutdown.cancel() });
    assert_eq!(answered, "no worker serves this model");
    running.await.unwrap();
    assert_eq!(routers.next().await, Some(Change::Deleted(key)));
}
