//! The bus over NATS.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::asker::Asker;
use super::forward::{Receiver, Wish};
use super::link::Link;
use super::outbox::Outbox;
use crate::bus::{REQUEST_QUEUE, Request, RequestError, SUBSCRIPTION_QUEUE};

/// How long the server may take to show that it has read everything.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(2);

/// Clones share it.
#[derive(Clone)]
pub(crate) struct NatsBus {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<Link>,
    asker: Asker,
    outbox: Arc<Outbox>,
    /// Begins every subject.
    cluster: String,
    /// Ends the forwarding to whoever answered a subject before: one per subject of this process.
    responders: Mutex<HashMap<String, CancellationToken>>,
}

impl NatsBus {
    pub fn start(link: &Arc<Link>, asker: Asker, cluster: &str) -> Self {
        let (link, cluster) = (link.clone(), cluster.to_string());
        let outbox = Outbox::start(link.wire().clone());
        let responders = Mutex::default();
        Self { shared: Arc::new(Shared { link, asker, outbox, cluster, responders }) }
    }

    fn subject(&self, subject: &str) -> String {
        format!("{}.{subject}", self.shared.cluster)
    }

    pub fn publish(&self, subject: &str, payload: Bytes) {
        self.shared.outbox.send(self.subject(subject).into(), None, payload);
    }

    pub fn subscribe(&self, subject: &str) -> mpsc::Receiver<Bytes> {
        let (sender, messages) = mpsc::channel(SUBSCRIPTION_QUEUE);
        let (subject, receiver) = (self.subject(subject), Receiver::Messages(sender));
        self.shared.outbox.subscribe(Wish { subject, receiver });
        messages
    }

    pub fn respond(&self, subject: &str) -> mpsc::Receiver<Request> {
        let (sender, requests) = mpsc::channel(REQUEST_QUEUE);
        let (subject, replaced) = (self.subject(subject), CancellationToken::new());
        let before = self.shared.responders.lock().insert(subject.clone(), replaced.clone());
        if let Some(before) = before {
            before.cancel();
        }
        let outbox = self.shared.outbox.clone();
        let receiver = Receiver::Requests { sender, replaced, outbox };
        self.shared.outbox.subscribe(Wish { subject, receiver });
        requests
    }

    pub async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        let asked = self.shared.asker.ask(self.subject(subject), None, payload, timeout);
        asked.await.map(|reply| reply.payload)
    }

    /// Waits until the server has read everything that was sent or subscribed before.
    pub async fn flushed(&self) {
        loop {
            self.shared.outbox.flushed().await;
            // Nobody answers there, and the server says so after it has read what came before.
            let subject = self.subject("nobody");
            let asked = self.shared.asker.ask(subject, None, Bytes::new(), ROUND_TRIP_TIMEOUT);
            if !matches!(asked.await, Err(RequestError::TimedOut)) {
                return;
            }
        }
    }

    pub fn dropped(&self) -> u64 {
        self.shared.link.wire().counters.dropped.load(Ordering::Relaxed)
    }
}
