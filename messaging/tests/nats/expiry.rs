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

fn put_many(network: &Network) {
    for number in 0..100 {
        network.registry.put(&format!("k/{number:02}"), value("v"));
    }
}

fn many(network: &Network) -> bool {
    network.registry.watch("k/").0.len() == 100
}

/// Everything expires in the server, and its owners come back within the grace.
#[tokio::test]
async fn mass_expiry_empties_no_table() {
    let server = NatsServer::start();
    let (owner, seer) = (connect(&server).await, connect(&server).await);
    put_many(&owner);
    until("all are known", || many(&seer)).await;
    let (_, mut watch) = seer.registry.watch("");
    drop(owner);
    while !connect(&server).await.registry.watch("k/").0.is_empty() {}
    assert!(many(&seer), "expired in the server, and still believed in");
    let owner = connect(&server).await;
    put_many(&owner);
    until("all are back", || many(&owner)).await;
    tokio::time::sleep(GRACE).await;
    owner.registry.put("last", value("v"));
    assert_eq!(next(&mut watch).await, put("last", "v"), "nobody heard of an expiry");
    assert!(many(&seer));
}

/// The server is away for longer than any entry lives: killed, or stopped.
#[tokio::test]
async fn a_long_absence_empties_no_table() {
    let mut server = NatsServer::start();
    let (owner, seer) = (connect(&server).await, connect(&server).await);
    put_many(&owner);
    until("all are known", || many(&seer)).await;
    let (_, mut watch) = seer.registry.watch("");
    for killed in [true, false] {
        if killed {
            server.kill()
        } else {
            server.stop()
        }
        until("away", || !owner.is_connected() && !seer.is_connected()).await;
        tokio::time::sleep(TTL + TTL).await;
        assert!(many(&seer));
        if killed {
            server.restart()
        } else {
            server.cont()
        }
        until("back", || owner.is_connected() && seer.is_connected()).await;
        let stranger = connect(&server).await;
        until("all are back", || many(&stranger)).await;
    }
    seer.registry.put("last", value("v"));
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
