//! Servers that go and come back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use messaging::{NatsOptions, Network, RequestError};
use testkit::NatsServer;

use crate::{
    DEADLINE, connect, connect_with, deleted, knows, next, put, until, until_known, value,
};

/// Reconnection takes so long at most once the server is back.
const RECONNECT: Duration = Duration::from_millis(500);

async fn until_back(network: &Network) -> Duration {
    until("back", || network.is_connected()).await
}

async fn until_away(network: &Network) -> Duration {
    until("away", || !network.is_connected()).await
}

#[tokio::test]
async fn everything_goes_on_after_a_kill() {
    let mut server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let (_, mut watch) = b.registry.watch("");
    let mut news = b.bus.subscribe("news");
    let mut requests = b.bus.respond("echo");
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            request.reply(value("yes"));
        }
    });
    a.registry.put("old", value("v"));
    assert_eq!(next(&mut watch).await, put("old", "v"));
    assert!(a.flush(DEADLINE).await && b.flush(DEADLINE).await);

    server.kill();
    until_away(&a).await;
    until_away(&b).await;
    assert!(knows(&b, "old"), "what was known stays in force");
    a.registry.put("new", value("v"));
    a.registry.put("short-lived", value("v"));
    a.registry.delete("short-lived");
    let asked = a.bus.request("echo", Bytes::new(), Duration::from_millis(50)).await;
    assert_eq!(asked, Err(RequestError::TimedOut));
    assert!(!a.flush(Duration::from_millis(50)).await, "nobody has it");

    server.restart();
    let start = Instant::now();
    until_back(&a).await;
    until_back(&b).await;
    assert!(start.elapsed() <= RECONNECT, "{:?}", start.elapsed());
    assert_eq!(next(&mut watch).await, put("new", "v"), "and nothing of `old`");
    assert!(a.flush(DEADLINE).await && b.flush(DEADLINE).await);
    a.bus.publish("news", value("hello"));
    assert_eq!(news.next().await.unwrap(), "hello");
    assert_eq!(a.bus.request("echo", Bytes::new(), DEADLINE).await.unwrap(), "yes");
    assert_eq!((a.counters().reconnects, b.counters().reconnects), (1, 1));
}

#[tokio::test]
async fn what_is_deleted_while_the_server_is_away_goes_when_it_is_back() {
    let mut server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let (_, mut watch) = b.registry.watch("");
    a.registry.put("k", value("v"));
    assert_eq!(next(&mut watch).await, put("k", "v"));
    server.kill();
    until_away(&a).await;
    a.registry.delete("k");
    server.restart();
    let start = Instant::now();
    assert_eq!(next(&mut watch).await, deleted("k"));
    assert!(start.elapsed() < Duration::from_secs(2), "not after a grace: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_server_that_lost_its_store_is_told_everything_again() {
    let mut server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    let (_, mut watch) = b.registry.watch("");
    for number in 0..300 {
        a.registry.put(&format!("a/{number:03}"), value("v"));
        next(&mut watch).await;
    }
    server.kill();
    until_away(&a).await;
    server.lose_store();
    a.registry.put("a/000", value("changed"));
    a.registry.delete("a/001");
    server.restart();
    let start = Instant::now();
    let mut changes = [next(&mut watch).await, next(&mut watch).await];
    changes.sort_by_key(|change| change == &deleted("a/001"));
    assert_eq!(changes, [put("a/000", "changed"), deleted("a/001")]);
    let stranger = connect(&server).await;
    until("all are back", || stranger.registry.watch("a/").0.len() == 299).await;
    assert!(start.elapsed() < Duration::from_secs(3), "sooner than by renewal");
    b.registry.put("last", value("v"));
    assert_eq!(next(&mut watch).await, put("last", "v"), "nothing else changed meanwhile");
    assert_eq!(b.registry.watch("a/").0.len(), 299);
}

/// The bucket alone is removed, under a connected client.
#[tokio::test]
async fn a_lost_bucket_is_made_again() {
    let server = NatsServer::start();
    let renew_often =
        |options: &mut NatsOptions| options.renew_interval = Duration::from_millis(200);
    let network = connect_with(&server, renew_often).await;
    network.registry.put("k", value("v"));
    until_known(&network, "k").await;
    let operator = async_nats::connect(server.url()).await.unwrap();
    let operator = async_nats::jetstream::new(operator);
    operator.delete_key_value("stator").await.unwrap();
    let start = Instant::now();
    let made_again = async {
        loop {
            let Ok(bucket) = operator.get_key_value("stator").await else { continue };
            if bucket.get("k").await.unwrap().is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, made_again).await.unwrap();
    network.registry.put("later", value("v"));
    until_known(&network, "later").await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(knows(&network, "k"));
}

#[tokio::test]
async fn a_stopped_server_is_noticed_and_comes_back() {
    let server = NatsServer::start();
    let (a, b) = (connect(&server).await, connect(&server).await);
    a.registry.put("k", value("v"));
    until_known(&b, "k").await;
    server.stop();
    let noticed = until_away(&a).await;
    assert!(noticed < Duration::from_millis(4500), "{noticed:?}");
    assert!(knows(&a, "k") && knows(&b, "k"));
    server.cont();
    let start = Instant::now();
    until_back(&a).await;
    until_back(&b).await;
    assert!(start.elapsed() <= RECONNECT, "{:?}", start.elapsed());
    let (_, mut watch) = b.registry.watch("later");
    a.registry.put("later", value("v"));
    assert_eq!(next(&mut watch).await, put("later", "v"));
}
