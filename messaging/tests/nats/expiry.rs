//! Entries that are no longer renewed. The server counts whole seconds, so these tests take some.

use std::time::{Duration, Instant};

use messaging::{NatsOptions, Network};
use testkit::NatsServer;

use crate::{DEADLINE, connect_with, deleted, knows, next, put, until, until_known, value};

const TTL: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(3);

fn short(options: &mut NatsOptions) {
    options.entry_ttl = TTL;
    options.renew_interval = Duration::from_millis(300);
    options.expiry_grace = GRACE;
}

async fn connect(server: &NatsServer) -> Network {
    connect_with(server, short).await
}

#[tokio::test]
async fn renewed_entries_stay_and_those_of_the_dead_go_after_a_grace() {
    let server = NatsServer::start();
    let (dead, alive, seer) =
        (connect(&server).await, connect(&server).await, connect(&server).await);
    let (_, mut watch) = seer.registry.watch("");
    alive.registry.put("alive", value("v"));
    assert_eq!(next(&mut watch).await, put("alive", "v"));
    dead.registry.put("dead", value("v"));
    assert_eq!(next(&mut watch).await, put("dead", "v"));
    let start = Instant::now();
    drop(dead);
    assert_eq!(next(&mut watch).await, deleted("dead"));
    let gone_after = start.elapsed();
    assert!(gone_after > GRACE && gone_after < TTL + GRACE + 2 * TTL, "{gone_after:?}");
    assert!(knows(&seer, "alive"));
    let late = connect(&server).await;
    assert!(knows(&late, "alive") && !knows(&late, "dead"), "expired in the server too");
}

#[tokio::test]
async fn a_clean_leave_is_seen_at_once_though_it_is_the_last_that_a_process_does() {
    let server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let (_, mut watch) = b.registry.watch("");
    a.registry.put("k", value("v"));
    assert_eq!(next(&mut watch).await, put("k", "v"));
    a.registry.delete("k");
    assert!(a.flush(DEADLINE).await);
    drop(a);
    let start = Instant::now();
    assert_eq!(next(&mut watch).await, deleted("k"));
    assert!(start.elapsed() < TTL, "{:?}", start.elapsed());
}

#[tokio::test]
async fn mass_expiry_empties_no_table() {
    let mut server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    for number in 0..100 {
        a.registry.put(&format!("k/{number:02}"), value("v"));
    }
    until("all are known", || b.registry.watch("k/").0.len() == 100).await;
    let (_, mut watch) = b.registry.watch("");
    server.kill();
    // Away for longer than any entry lives.
    tokio::time::sleep(TTL + TTL).await;
    assert_eq!(b.registry.watch("k/").0.len(), 100);
    server.restart();
    until("back", || b.is_connected() && a.is_connected()).await;
    let stranger = connect(&server).await;
    until("all are back", || stranger.registry.watch("k/").0.len() == 100).await;
    b.registry.put("last", value("v"));
    assert_eq!(next(&mut watch).await, put("last", "v"), "nobody heard of an expiry");
}

#[tokio::test]
async fn an_entry_that_someone_else_removed_comes_back() {
    let server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let (_, mut watch) = b.registry.watch("");
    a.registry.put("k", value("v"));
    assert_eq!(next(&mut watch).await, put("k", "v"));
    b.registry.delete("k");
    assert_eq!(next(&mut watch).await, deleted("k"));
    assert_eq!(next(&mut watch).await, put("k", "v"));
    until_known(&a, "k").await;
}
