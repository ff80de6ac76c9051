//! The routers there are, and how one of them is asked.

use std::time::Duration;

use bytes::Bytes;
use messaging::{Change, Network};
use parking_lot::Mutex;
use prost::Message;
use protocol::{subjects, v1};
use tokio::time::Instant;

/// A router answers in far less. One that does not is dead, stopped, or cut off.
const ROUTE_TIMEOUT: Duration = Duration::from_millis(50);

/// A router that did not answer is not asked again for this long, so that not every request waits.
const MUTED: Duration = Duration::from_secs(1);

/// Routers that one request asks; then the gateway decides itself.
const ASKED_MAX: usize = 2;

/// Routers known; further ones are left out.
const ROUTERS_MAX: usize = 64;

/// The routers that a gateway asks, in turn from one of its own choice on, so that gateways spread.
pub struct Routers {
    known: Mutex<Vec<Router>>,
    preference: usize,
}

struct Router {
    /// Its key in the registry.
    key: String,
    subject: String,
    muted_until: Option<Instant>,
}

impl Default for Routers {
    fn default() -> Self {
        Self { known: Mutex::default(), preference: rand::random_range(0..ROUTERS_MAX) }
    }
}

impl Routers {
    /// Follows the registry, for as long as it is polled.
    pub async fn follow(&self, network: &Network) {
        loop {
            let (present, mut changes) = network.registry.watch(subjects::ROUTERS);
            self.known.lock().retain(|router| present.iter().any(|(key, _)| *key == router.key));
            present.into_iter().for_each(|(key, value)| self.apply(Change::Put(key, value)));
            while let Some(change) = changes.next().await {
                self.apply(change);
            }
        }
    }

    fn apply(&self, change: Change) {
        let mut known = self.known.lock();
        match change {
            Change::Put(key, _) if known.iter().any(|router| router.key == key) => {}
            Change::Put(key, value) => match v1::RouterRegistration::decode(value) {
                Ok(v1::RouterRegistration { router_id, incarnation })
                    if known.len() < ROUTERS_MAX =>
                {
                    let subject = subjects::route(&router_id, incarnation);
                    known.push(Router { key, subject, muted_until: None });
                    known.sort_by(|a, b| a.key.cmp(&b.key));
                }
                Ok(_) => tracing::warn!(key, "too many routers, leaving it out"),
                Err(error) => tracing::warn!(key, %error, "unreadable registration"),
            },
            Change::Deleted(key) => known.retain(|router| router.key != key),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.lock().len()
    }

    /// Asks one router, then the next. None: neither answered, or there are none.
    pub async fn ask(&self, network: &Network, question: &Bytes) -> Option<v1::RouteReply> {
        if !network.is_connected() {
            return None;
        }
        for subject in self.to_ask() {
            let reply = network.bus.request(&subject, question.clone(), ROUTE_TIMEOUT).await;
            match reply.map(v1::RouteReply::decode) {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => tracing::warn!(subject, %error, "a router's unreadable answer"),
                Err(error) => {
                    tracing::info!(subject, %error, "a router does not answer, asking another");
                }
            }
            self.mute(&subject);
        }
        None
    }

    fn to_ask(&self) -> Vec<String> {
        let (known, now) = (self.known.lock(), Instant::now());
        let first = self.preference % known.len().max(1);
        let in_turn = known[first..].iter().chain(&known[..first]);
        let heard = in_turn.filter(|router| router.muted_until.is_none_or(|until| until <= now));
        heard.take(ASKED_MAX).map(|router| router.subject.clone()).collect()
    }

    fn mute(&self, subject: &str) {
        let mut known = self.known.lock();
        if let Some(router) = known.iter_mut().find(|router| router.subject == subject) {
            router.muted_until = Some(Instant::now() + MUTED);
        }
    }
}
