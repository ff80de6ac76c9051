//! What is true of NATS alone: servers that will not do, and servers that come and go.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod admission;
mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod expiry;
mod outages;
mod refusals;

use std::time::{Duration, Instant};

use messaging::{Change, NatsOptions, Network, Watch};
use testkit::NatsServer;

use common::{deleted, put, value};

/// How long anything may take that has no bound of its own.
const DEADLINE: Duration = Duration::from_secs(20);

async fn connect(server: &NatsServer) -> Network {
    connect_with(server, |_| {}).await
}

async fn connect_with(server: &NatsServer, change: impl FnOnce(&mut NatsOptions)) -> Network {
    let mut options = NatsOptions::new(server.url());
    change(&mut options);
    Network::connect(options).await.unwrap()
}

/// Waits for a condition; says how long that took.
async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

/// Waits until a registry has a key.
async fn until_known(network: &Network, key: &str) {
    until(key, || knows(network, key)).await;
}

fn knows(network: &Network, key: &str) -> bool {
    !network.registry.watch(key).0.is_empty()
}

/// The next change, which must come in time.
async fn next(watch: &mut Watch) -> Change {
    tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap()
}
