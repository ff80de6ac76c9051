//! One connection: whether it is there, and what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Event, ServerError};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How often it is checked that no event of the client was lost; its queue of events drops some
/// when it is full.
const REPAIR_INTERVAL: Duration = Duration::from_millis(250);

/// What happened to a network since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// Times the connection came back.
    pub reconnects: u64,
    /// Messages lost to full queues, or to a server that was away.
    pub dropped: u64,
    /// Publications and subscriptions the server forbade.
    pub forbidden: u64,
    /// Messages the client library dropped before our queues.
    pub slow_consumer: u64,
}

/// The counts behind `NetworkCounters`.
#[derive(Default)]
pub(crate) struct Counters {
    pub dropped: AtomicU64,
    forbidden: AtomicU64,
    slow_consumer: AtomicU64,
}

/// Whether the server is there, and how often a connection came about.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub up: bool,
    pub connects: u64,
}

/// What the tasks of a network share. They end when `stopped` says so.
#[derive(Clone)]
pub(crate) struct Wire {
    pub client: Client,
    /// Without user and password.
    pub address: Arc<str>,
    pub state: watch::Receiver<LinkState>,
    pub counters: Arc<Counters>,
    pub stopped: CancellationToken,
}

/// Held by the handles of a network; its tasks end when the last one is dropped.
pub(crate) struct Link {
    wire: Wire,
    _stops_tasks: DropGuard,
}

/// Receives the client's events, from before there is a client.
#[derive(Clone)]
pub(crate) struct Events {
    state: watch::Sender<LinkState>,
    counters: Arc<Counters>,
    address: Arc<str>,
}

impl Link {
    pub fn new(client: Client, events: Events) -> Self {
        let stopped = CancellationToken::new();
        let (address, counters) = (events.address.clone(), events.counters.clone());
        let state = events.state.subscribe();
        let wire = Wire { client, address, state, counters, stopped: stopped.clone() };
        tokio::spawn(repair(wire.client.clone(), events.state, stopped.clone()));
        Self { wire, _stops_tasks: stopped.drop_guard() }
    }

    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    pub fn is_connected(&self) -> bool {
        self.wire.client.connection_state() == State::Connected
    }

    pub fn counters(&self) -> NetworkCounters {
        let counters = &self.wire.counters;
        NetworkCounters {
            reconnects: connects(&self.wire.client).saturating_sub(1),
            dropped: counters.dropped.load(Ordering::Relaxed),
            forbidden: counters.forbidden.load(Ordering::Relaxed),
            slow_consumer: counters.slow_consumer.load(Ordering::Relaxed),
        }
    }
}

impl Wire {
    /// Waits until the server is there; returns which connection it is.
    pub async fn connected(&mut self) -> u64 {
        let up = self.state.wait_for(|state| state.up).await.map(|state| state.connects);
        match up {
            Ok(connects) => connects,
            // The sender lives in a task that ends with this network.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Events {
    pub fn new(address: &str) -> Self {
        let (state, _) = watch::channel(LinkState::default());
        Self { state, counters: Arc::default(), address: address.into() }
    }

    pub fn handle(&self, event: &Event) {
        let server = &*self.address;
        match event {
            Event::Connected => {
                self.state.send_modify(|state| {
                    *state = LinkState { up: true, connects: state.connects + 1 };
                });
                tracing::info!(server, "connected to nats");
            }
            Event::Disconnected => {
                self.state.send_modify(|state| state.up = false);
                tracing::warn!(server, "lost nats: what was last known stays in force");
            }
            Event::SlowConsumer(subscription) => {
                let dropped = self.counters.slow_consumer.fetch_add(1, Ordering::Relaxed) + 1;
                // They come by the thousand, when the machine is too slow already.
                if dropped.is_power_of_two() {
                    tracing::warn!(
                        server,
                        subscription,
                        dropped,
                        "messages of nats were dropped: slow consumer"
                    );
                }
            }
            Event::ServerError(ServerError::Other(text)) if is_violation(text) => {
                self.counters.forbidden.fetch_add(1, Ordering::Relaxed);
                let subject = quoted(text);
                tracing::warn!(server, subject, error = %text, "nats forbids this");
            }
            Event::ServerError(error) => tracing::warn!(server, %error, "nats reports an error"),
            other => tracing::debug!(server, event = %other, "nats"),
        }
    }
}

fn is_violation(text: &str) -> bool {
    text.to_ascii_lowercase().contains("permissions violation")
}

/// What stands between the first two quotes: the subject of a violation.
fn quoted(text: &str) -> &str {
    text.split('"').nth(1).unwrap_or("?")
}

fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

async fn repair(client: Client, state: watch::Sender<LinkState>, stopped: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(REPAIR_INTERVAL) => {}
        }
        let (up, seen) = (client.connection_state() == State::Connected, connects(&client));
        state.send_if_modified(|state| {
            let truth = LinkState { up, connects: seen.max(state.connects) };
            std::mem::replace(state, truth) != truth
        });
    }
}
