//! What every network promises, in process and over NATS.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod bus;
#[path = "../common/mod.rs"]
mod common;
mod registry;

use std::pin::Pin;
use std::time::Duration;

use messaging::{NatsOptions, Network};
use testkit::NatsServer;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Two handles to one network, as two components hold them.
struct Pair {
    a: Network,
    b: Network,
    _server: Option<NatsServer>,
}

impl Pair {
    fn in_process() -> Self {
        let a = Network::default();
        Self { b: a.clone(), a, _server: None }
    }

    /// Two clients of one server.
    async fn over_nats() -> Self {
        let server = NatsServer::start();
        let connect = || Network::connect(NatsOptions::new(server.url()));
        let (a, b) = (connect().await.unwrap(), connect().await.unwrap());
        Self { a, b, _server: Some(server) }
    }

    /// Until everything said so far has reached the other side.
    async fn settled(&self) {
        assert!(self.a.flush(DEADLINE).await && self.b.flush(DEADLINE).await);
    }
}

/// Runs one promise over every network.
fn check<F>(promise: F)
where
    F: for<'a> Fn(&'a Pair) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
{
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for pair in [Pair::in_process(), Pair::over_nats().await] {
            let over = if pair._server.is_some() { "over NATS" } else { "in process" };
            let kept = tokio::time::timeout(DEADLINE, promise(&pair)).await;
            kept.unwrap_or_else(|_| panic!("{over}: not done in time"));
        }
    });
}
