//! What waits to be sent. Putting something in never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::forward::{self, Wish};
use super::link::Wire;

/// Messages that wait to be sent; further ones are dropped and counted.
const OUTBOX: usize = 4096;

/// Bytes that wait to be sent; messages beyond are dropped and counted.
const OUTBOX_BYTES: usize = 64 << 20;

/// Messages that waited longer, because the server was away, are dropped and counted: news of the
/// past would only pass for the present.
const OUTBOX_AGE: Duration = Duration::from_secs(2);

/// The queue in front of one connection.
pub(crate) struct Outbox {
    queue: mpsc::Sender<Outgoing>,
    waiting_bytes: Arc<AtomicUsize>,
    wishes: Arc<Wishes>,
    wire: Wire,
}

/// Subscriptions that are to be made, before anything that is sent after them. As many as
/// components made since the outbox's task ran last.
#[derive(Default)]
struct Wishes {
    list: Mutex<Vec<Wish>>,
    wake: Notify,
}

enum Outgoing {
    Message { subject: Subject, headers: Option<HeaderMap>, payload: Bytes, since: Instant },
    Flush(oneshot::Sender<()>),
}

impl Outbox {
    pub fn start(wire: Wire) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(OUTBOX);
        let wishes = Arc::new(Wishes::default());
        let waiting_bytes = Arc::<AtomicUsize>::default();
        let sender = Sender {
            wire: wire.clone(),
            wishes: wishes.clone(),
            waiting_bytes: waiting_bytes.clone(),
        };
        let stopped = wire.stopped.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(sender.run(waiting)).await });
        Arc::new(Self { queue, waiting_bytes, wishes, wire })
    }

    /// Sends a message, or drops and counts it.
    pub fn send(&self, subject: Subject, headers: Option<HeaderMap>, payload: Bytes) {
        let bytes = payload.len();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let since = Instant::now();
        let message = Outgoing::Message { subject, headers, payload, since };
        if waiting + bytes > OUTBOX_BYTES || self.queue.try_send(message).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.wire.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Subscribes, before anything is sent that is put in later.
    pub fn subscribe(&self, wish: Wish) {
        self.wishes.list.lock().push(wish);
        self.wishes.wake.notify_one();
    }

    /// Waits until everything before was handed to the server's socket.
    pub async fn flushed(&self) {
        let (done, flushed) = oneshot::channel();
        let _stopped = self.queue.send(Outgoing::Flush(done)).await;
        let _stopped = flushed.await;
    }
}

struct Sender {
    wire: Wire,
    wishes: Arc<Wishes>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Sender {
    async fn run(mut self, mut waiting: mpsc::Receiver<Outgoing>) {
        loop {
            let outgoing = tokio::select! {
                biased;
                () = self.wishes.wake.notified() => None,
                outgoing = waiting.recv() => Some(outgoing),
            };
            self.grant_wishes().await;
            match outgoing {
                None => {}
                Some(Some(outgoing)) => self.send(outgoing).await,
                Some(None) => return,
            }
        }
    }

    async fn grant_wishes(&self) {
        let wishes = std::mem::take(&mut *self.wishes.list.lock());
        for wish in wishes {
            match self.wire.client.subscribe(wish.subject.clone()).await {
                Ok(subscriber) => forward::start(&self.wire, wish, subscriber),
                Err(error) => {
                    tracing::error!(subject = %wish.subject, %error, "cannot subscribe");
                }
            }
        }
    }

    async fn send(&mut self, outgoing: Outgoing) {
        self.wire.connected().await;
        match outgoing {
            Outgoing::Message { subject, headers, payload, since } => {
                self.waiting_bytes.fetch_sub(payload.len(), Ordering::Relaxed);
                let too_old = since.elapsed() > OUTBOX_AGE;
                if too_old || !self.publish(subject, headers, payload).await {
                    self.wire.counters.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Outgoing::Flush(done) => {
                if self.wire.client.flush().await.is_ok() {
                    let _gave_up = done.send(());
                }
            }
        }
    }

    async fn publish(&self, subject: Subject, headers: Option<HeaderMap>, payload: Bytes) -> bool {
        let client = &self.wire.client;
        let sent = match headers {
            Some(headers) => client.publish_with_headers(subject.clone(), headers, payload).await,
            None => client.publish(subject.clone(), payload).await,
        };
        if let Err(error) = &sent {
            tracing::warn!(%subject, %error, "cannot publish");
        }
        sent.is_ok()
    }
}
