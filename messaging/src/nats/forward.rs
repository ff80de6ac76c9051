//! From the client library's subscriptions to ours.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::{HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::link::Wire;
use super::outbox::Outbox;
use crate::bus::{Reply, Request};

/// A reply with this header says that there is none: the queue of requests was full, or the
/// request was dropped.
pub(super) const REFUSED: &str = "Stator-Refused";

/// A subscription that is to be made.
pub(crate) struct Wish {
    pub subject: String,
    pub receiver: Receiver,
}

/// Who receives it.
pub(crate) enum Receiver {
    Messages(mpsc::Sender<Bytes>),
    Requests { sender: mpsc::Sender<Request>, replaced: CancellationToken, outbox: Arc<Outbox> },
}

/// Where the answer of one request goes.
pub(crate) struct RemoteReply {
    subject: Option<Subject>,
    outbox: Arc<Outbox>,
}

impl RemoteReply {
    /// Answers.
    pub fn send(mut self, payload: Bytes) {
        if let Some(subject) = self.subject.take() {
            self.outbox.send(subject, None, payload);
        }
    }
}

impl Drop for RemoteReply {
    fn drop(&mut self) {
        if let Some(subject) = self.subject.take() {
            let mut headers = HeaderMap::new();
            headers.insert(REFUSED, "1");
            self.outbox.send(subject, Some(headers), Bytes::new());
        }
    }
}

/// Starts handing on what arrives.
pub(crate) fn start(wire: &Wire, wish: Wish, subscriber: Subscriber) {
    let Wish { subject, receiver } = wish;
    let wire = wire.clone();
    tokio::spawn(async move {
        match receiver {
            Receiver::Messages(sender) => messages(wire, subject, subscriber, sender).await,
            Receiver::Requests { sender, replaced, outbox } => {
                let forwarded = requests(&wire, subscriber, sender, outbox);
                replaced.run_until_cancelled(forwarded).await;
            }
        }
    });
}

async fn messages(
    wire: Wire,
    subject: String,
    mut subscriber: Subscriber,
    sender: mpsc::Sender<Bytes>,
) {
    let mut lagging = false;
    while let Some(message) = next(&wire, &mut subscriber, &sender).await {
        match sender.try_send(message.payload) {
            Ok(()) => lagging = false,
            Err(mpsc::error::TrySendError::Closed(_)) => return,
            Err(mpsc::error::TrySendError::Full(_)) => {
                wire.counters.dropped.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut lagging, true) {
                    tracing::warn!(subject, "a subscriber is too slow: its messages are dropped");
                }
            }
        }
    }
}

async fn requests(
    wire: &Wire,
    mut subscriber: Subscriber,
    sender: mpsc::Sender<Request>,
    outbox: Arc<Outbox>,
) {
    let request = |message: Message| {
        let reply = RemoteReply { subject: Some(message.reply?), outbox: outbox.clone() };
        Some(Request { payload: message.payload, reply: Reply::Nats(reply) })
    };
    while let Some(message) = next(wire, &mut subscriber, &sender).await {
        let Some(request) = request(message) else { continue };
        // A request that finds no room is dropped here, and so refused.
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(request) {
            wire.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
    // What still comes before the server knows is refused, too.
    if subscriber.drain().await.is_ok() {
        while let Some(message) = subscriber.next().await {
            drop(request(message));
        }
    }
}

/// The next message; none once nobody receives any more.
async fn next<T>(
    wire: &Wire,
    subscriber: &mut Subscriber,
    sender: &mpsc::Sender<T>,
) -> Option<Message> {
    tokio::select! {
        biased;
        () = wire.stopped.cancelled() => None,
        () = sender.closed() => None,
        message = subscriber.next() => message,
    }
}
