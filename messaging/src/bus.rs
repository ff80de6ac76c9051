//! Publish and subscribe, and request and reply, by subject.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::faults::Faults;
use crate::local_bus::LocalBus;
use crate::nats::{NatsBus, RemoteReply};

/// Messages that one subscriber may lag behind; further ones are dropped and counted.
pub(crate) const SUBSCRIPTION_QUEUE: usize = 4096;

/// Requests that may wait for one responder; further ones are refused as if there were none.
pub(crate) const REQUEST_QUEUE: usize = 4096;

/// A handle to the bus, of this process or over NATS. Clones share it.
#[derive(Clone)]
pub struct Bus {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Local(LocalBus),
    Nats(NatsBus),
}

/// Messages on one subject, from the subscription on.
pub struct Subscription {
    messages: mpsc::Receiver<Bytes>,
}

/// Requests on one subject.
pub struct Requests {
    requests: mpsc::Receiver<Request>,
}

/// A request that waits for its reply. Dropped without one, it is refused.
pub struct Request {
    /// What is asked.
    pub payload: Bytes,
    pub(crate) reply: Reply,
}

pub(crate) enum Reply {
    Local(oneshot::Sender<Bytes>),
    Nats(RemoteReply),
}

/// Why a request has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nobody answers requests on this subject, or its queue is full.
    #[error("nobody answers on this subject")]
    NoResponder,
    /// The responder took the request and gave no answer in time, or nobody could be reached.
    #[error("no answer in time")]
    TimedOut,
}

impl Default for Bus {
    fn default() -> Self {
        Self { way: Way::Local(LocalBus::default()) }
    }
}

impl Bus {
    pub(crate) fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self { way: Way::Local(LocalBus::with_faults(faults)) }
    }

    pub(crate) fn over_nats(bus: NatsBus) -> Self {
        Self { way: Way::Nats(bus) }
    }

    /// Sends to all subscribers of `subject`. Never waits: a subscriber whose queue is full loses
    /// the message, and sees the gap in the sender's sequence numbers.
    pub fn publish(&self, subject: &str, payload: Bytes) {
        match &self.way {
            Way::Local(bus) => bus.publish(subject, payload),
            Way::Nats(bus) => bus.publish(subject, payload),
        }
    }

    /// Receives what is published on `subject` from now on.
    pub fn subscribe(&self, subject: &str) -> Subscription {
        let messages = match &self.way {
            Way::Local(bus) => bus.subscribe(subject),
            Way::Nats(bus) => bus.subscribe(subject),
        };
        Subscription { messages }
    }

    /// Answers requests on `subject`, in place of whoever in this process did before.
    pub fn respond(&self, subject: &str) -> Requests {
        let requests = match &self.way {
            Way::Local(bus) => bus.respond(subject),
            Way::Nats(bus) => bus.respond(subject),
        };
        Requests { requests }
    }

    /// Asks on `subject` and waits for the reply, at most for `timeout`.
    pub async fn request(
        &self,
        subject: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        match &self.way {
            Way::Local(bus) => bus.request(subject, payload, timeout).await,
            Way::Nats(bus) => bus.request(subject, payload, timeout).await,
        }
    }

    /// Messages lost to full queues, or to a server that was away, since the start.
    pub fn dropped(&self) -> u64 {
        match &self.way {
            Way::Local(bus) => bus.dropped(),
            Way::Nats(bus) => bus.dropped(),
        }
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
        match self.reply {
            Reply::Local(sender) => {
                let _gone = sender.send(payload);
            }
            Reply::Nats(reply) => reply.send(payload),
        }
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
