//! What routers tell each other: the requests they gave away.

use std::time::Duration;

use messaging::Bus;
use prost::Message;
use protocol::{subjects, v1};
use tokio::time::Instant;

use crate::choice::Route;
use crate::run::RouterIdentity;

/// Between two messages.
const INTERVAL: Duration = Duration::from_millis(20);

/// Dispatches of one message; further ones are not told. Workers' reports contain them soon.
const DISPATCHES_MAX: usize = 4096;

/// What is to be told of one router's decisions.
pub struct Telling {
    untold: v1::Dispatches,
    due: Option<Instant>,
}

impl Telling {
    /// Nothing yet.
    pub fn new(identity: &RouterIdentity) -> Self {
        let (router_id, incarnation) = (identity.id.clone(), identity.incarnation.0);
        let untold = v1::Dispatches { router_id, incarnation, dispatches: Vec::new() };
        Self { untold, due: None }
    }

    /// A request was given away.
    pub fn add(&mut self, route: &Route, prompt_tokens: u32) {
        for (worker, prefill_us) in route.shares() {
            if self.untold.dispatches.len() >= DISPATCHES_MAX {
                return;
            }
            self.untold.dispatches.push(v1::Dispatch {
                worker_id: worker.id.to_string(),
                worker_incarnation: worker.incarnation.0,
                prefill_us,
                prompt_tokens,
            });
        }
        self.due.get_or_insert_with(|| Instant::now() + INTERVAL);
    }

    /// Waits until there is something to tell; for ever while nothing was given away.
    pub async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Tells the other routers.
    pub fn tell(&mut self, bus: &Bus) {
        bus.publish(subjects::DISPATCHES, self.untold.encode_to_vec().into());
        self.untold.dispatches.clear();
        self.due = None;
    }

    /// What a message of another router says was given away; nothing of one's own.
    pub fn heard<'a>(&self, message: &'a v1::Dispatches) -> &'a [v1::Dispatch] {
        let sender = (&message.router_id, message.incarnation);
        let is_own = sender == (&self.untold.router_id, self.untold.incarnation);
        if is_own { &[] } else { &message.dispatches }
    }
}
