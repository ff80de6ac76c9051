//! Publish and subscribe, and request and reply, by subject.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::faults::Faults;

/// Messages that one subscriber may lag behind; further ones are dropped and counted.
const SUBSCRIPTION_QUEUE: usize = 4096;

/// Requests that may wait for one responder; further ones are refused as if there were none.
const REQUEST_QUEUE: usize = 4096;

/// A handle to the bus of this process. Clones share it.
#[derive(Clone, Default)]
pub struct Bus {
    shared: Arc<Shared>,
    faults: Option<Arc<dyn Faults>>,
}

#[derive(Default)]
struct Shared {
    subscribers: Mutex<HashMap<String, Vec<mpsc::Sender<Bytes>>>>,
    responders: Mutex<HashMap<String, mpsc::Sender<Request>>>,
    dropped: AtomicU64,
}

/// Messages on one subject, from the subscription on.
pub struct Subscription {
    messages: mpsc::Receiver<Bytes>,
}

/// Requests on one subject.
pub struct Requests {
    requests: mpsc::Receiver<Request>,
}

/// A request that waits for its reply.
pub struct Request {
    /// What is asked.
    pub payload: Bytes,
    reply: oneshot::Sender<Bytes>,
}

/// Why a request has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nobody answers requests on this subject, or its queue is full.
    #[error("nobody answers on this subject")]
    NoResponder,
    /// The responder took the request and gave no answer in time.
    #[error("no answer in time")]
    TimedOut,
}

impl Bus {
    pub(crate) fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self { faults: Some(faults), ..Default::default() }
    }

    /// Sends to all subscribers of `subject`. Never waits: a subscriber whose queue is full loses
    /// the message, and sees the gap in the sender's sequence numbers.
    pub fn publish(&self, subject: &str, payload: Bytes) {
        let Some(faults) = &self.faults else { return self.deliver(subject, &payload) };
        for (delay, payload) in faults.carry(subject, payload) {
            let (bus, subject) = (self.clone(), subject.to_string());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                bus.deliver(&subject, &payload);
            });
        }
    }

    fn deliver(&self, subject: &str, payload: &Bytes) {
        let mut subscribers = self.shared.subscribers.lock();
        let Some(senders) = subscribers.get_mut(subject) else { return };
        senders.retain(|sender| match sender.try_send(payload.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    /// Receives what is published on `subject` from now on.
    pub fn subscribe(&self, subject: &str) -> Subscription {
        let (sender, messages) = mpsc::channel(SUBSCRIPTION_QUEUE);
        self.shared.subscribers.lock().entry(subject.to_string()).or_default().push(sender);
        Subscription { messages }
    }

    /// Answers requests on `subject`, in place of whoever did before.
    pub fn respond(&self, subject: &str) -> Requests {
        let (sender, requests) = mpsc::channel(REQUEST_QUEUE);
        self.shared.responders.lock().insert(subject.to_string(), sender);
        Requests { requests }
    }

    /// Asks on `subject` and waits for the reply, at most for `timeout`.
    pub async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        let responder = self.shared.responders.lock().get(subject).cloned();
        let responder = responder.ok_or(RequestError::NoResponder)?;
        let ask = async {
            let payload = self.travelled(subject, payload).await;
            let (reply, answer) = oneshot::channel();
            let asked = responder.try_send(Request { payload, reply });
            asked.map_err(|_| RequestError::NoResponder)?;
            let answer = answer.await.map_err(|_| RequestError::NoResponder)?;
            Ok(self.travelled(subject, answer).await)
        };
        tokio::time::timeout(timeout, ask).await.map_err(|_| RequestError::TimedOut)?
    }

    /// A message of a request once it has arrived, which it may never do.
    async fn travelled(&self, subject: &str, payload: Bytes) -> Bytes {
        let Some(faults) = &self.faults else { return payload };
        match faults.carry(subject, payload).into_iter().next() {
            Some((delay, payload)) => {
                tokio::time::sleep(delay).await;
                payload
            }
            None => std::future::pending().await,
        }
    }

    /// Messages lost to full queues since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Subscription {
    /// The next message; none once the bus is gone.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.messages.recv().await
    }
}

impl Requests {
    /// The next request; none once the bus is gone or another responder took over.
    pub async fn next(&mut self) -> Option<Request> {
        self.requests.recv().await
    }
}

impl Request {
    /// Answers. A requester that no longer waits does not notice.
    pub fn reply(self, payload: Bytes) {
        let _gone = self.reply.send(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn subscribers_receive_what_is_published_on_their_subject() {
        let bus = Bus::default();
        let (mut a, mut b) = (bus.subscribe("a"), bus.subscribe("a"));
        bus.publish("b", Bytes::from_static(b"other"));
        bus.publish("a", Bytes::from_static(b"one"));
        assert_eq!(a.next().await.unwrap(), "one");
        assert_eq!(b.next().await.unwrap(), "one");
    }

    #[tokio::test]
    async fn a_slow_subscriber_loses_messages_and_publishing_never_waits() {
        let bus = Bus::default();
        let mut slow = bus.subscribe("a");
        for _ in 0..SUBSCRIPTION_QUEUE + 3 {
            bus.publish("a", Bytes::new());
        }
        assert_eq!(bus.dropped(), 3);
        assert!(slow.next().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_answered_or_fail_in_time() {
        let bus = Bus::default();
        let ask = || bus.request("route", Bytes::new(), Duration::from_millis(50));
        assert_eq!(ask().await, Err(RequestError::NoResponder));
        let mut requests = bus.respond("route");
        let answer = async { requests.next().await.unwrap().reply(Bytes::from_static(b"yes")) };
        let (reply, ()) = tokio::join!(ask(), answer);
        assert_eq!(reply.unwrap(), "yes");
        assert_eq!(ask().await, Err(RequestError::TimedOut), "taken and not answered");
        drop(requests);
        assert_eq!(ask().await, Err(RequestError::NoResponder));
    }
}
