//! Limits: of queues while the server is away, and of what a client may do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use testkit::{NatsServer, NatsSettings};

use crate::{DEADLINE, connect, connect_with, until, value};

#[tokio::test]
async fn publishing_never_waits_and_old_news_is_dropped() {
    let mut server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let mut news = b.bus.subscribe("news");
    assert!(b.flush(DEADLINE).await);
    server.kill();
    until("away", || !a.is_connected()).await;
    let start = Instant::now();
    for _ in 0..20_000 {
        a.bus.publish("news", value("old"));
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let dropped = a.bus.dropped();
    assert!((15_000..20_000).contains(&dropped), "the outbox is bounded: {dropped}");
    // Longer than messages may wait.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    server.restart();
    until("back", || a.is_connected() && b.is_connected()).await;
    assert!(b.flush(DEADLINE).await);
    a.bus.publish("news", value("new"));
    assert_eq!(news.next().await.unwrap(), "new");
    assert_eq!(a.bus.dropped(), 20_000);
}

#[tokio::test]
async fn the_outbox_is_bounded_in_bytes() {
    let mut server = NatsServer::start();
    let a = connect(&server).await;
    server.kill();
    until("away", || !a.is_connected()).await;
    let large = Bytes::from(vec![0; 1 << 19]);
    for _ in 0..200 {
        a.bus.publish("news", large.clone());
    }
    let kept = 200 - a.bus.dropped();
    assert!((64..=130).contains(&kept), "64 MiB are {kept} messages of half a MiB");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_dropped_and_counted() {
    let server = NatsServer::start();
    let a = connect(&server).await;
    a.bus.publish("news", Bytes::from(vec![0; 2 << 20]));
    until("counted", || a.bus.dropped() == 1).await;
    assert!(a.flush(DEADLINE).await && a.is_connected());
}

#[tokio::test]
async fn what_the_server_forbids_is_counted() {
    let permissions = "authorization { users: [ { user: a, password: b, permissions: {
        publish: { deny: stator.kv }, subscribe: { deny: stator.load } } } ] }";
    let server = NatsServer::start_with(NatsSettings::with(permissions.to_string()));
    let network = connect_with(&server, |options| {
        options.url = options.url.replace("//", "//a:b@");
    });
    let network = network.await;
    assert_eq!(network.counters().forbidden, 0);
    network.bus.publish("kv", value("not allowed"));
    until("the publication is counted", || network.counters().forbidden == 1).await;
    let _subscription = network.bus.subscribe("load");
    until("the subscription is counted", || network.counters().forbidden == 2).await;
    network.bus.publish("news", value("allowed"));
    assert!(network.flush(DEADLINE).await);
    assert_eq!(network.counters().forbidden, 2);
}

#[tokio::test]
async fn clusters_of_different_names_do_not_see_each_other() {
    let server = NatsServer::start();
    let a = connect(&server).await;
    let other = connect_with(&server, |options| options.cluster = "other".to_string()).await;
    let mut news = other.bus.subscribe("news");
    assert!(other.flush(DEADLINE).await);
    a.registry.put("k", value("v"));
    a.bus.publish("news", value("theirs"));
    assert!(a.flush(DEADLINE).await);
    other.registry.put("l", value("v"));
    other.bus.publish("news", value("ours"));
    until("its own entry", || other.registry.watch("").0.len() == 1).await;
    assert_eq!(news.next().await.unwrap(), "ours");
}
