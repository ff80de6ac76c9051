//! Requests and their replies.
//!
//! The client library keeps a place for every reply that never comes; here a request that is given
//! up leaves nothing behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_stream::StreamExt;

use super::forward::REFUSED;
use super::link::Wire;
use crate::bus::RequestError;

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Asker {
    shared: Arc<Shared>,
}

struct Shared {
    wire: Wire,
    inbox: String,
    next: AtomicU64,
    /// Those who wait, each for its own time: as many as call `ask`.
    waiting: Waiting,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Message>>>>;

/// Gives the place of a request back.
struct Place<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Asker {
    pub async fn start(wire: &Wire) -> Self {
        let inbox = wire.client.new_inbox();
        let waiting = Waiting::default();
        // Fails only where the client has ended; then every request times out.
        if let Ok(replies) = wire.client.subscribe(format!("{inbox}.*")).await {
            tokio::spawn(hand_out(replies, waiting.clone(), wire.clone()));
        }
        let next = AtomicU64::new(0);
        Self { shared: Arc::new(Shared { wire: wire.clone(), inbox, next, waiting }) }
    }

    /// Asks and waits for the reply, at most for `timeout`.
    pub async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        let Shared { wire, inbox, next, waiting } = &*self.shared;
        let number = next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        waiting.lock().insert(number, sender);
        let _place = Place { waiting, number };
        let asked = async {
            let inbox = format!("{inbox}.{number}");
            let sent = match headers {
                Some(headers) => {
                    let publish = wire
                        .client
                        .publish_with_reply_and_headers(subject, inbox, headers, payload);
                    publish.await
                }
                None => wire.client.publish_with_reply(subject, inbox, payload).await,
            };
            if let Err(error) = sent {
                tracing::warn!(%error, "cannot send a request");
                return Err(RequestError::NoResponder);
            }
            reply.await.map_err(|_| RequestError::TimedOut)
        };
        let reply = tokio::time::timeout(timeout, asked).await;
        let reply = reply.map_err(|_| RequestError::TimedOut)??;
        if reply.status == Some(StatusCode::NO_RESPONDERS) || is_refusal(&reply) {
            return Err(RequestError::NoResponder);
        }
        Ok(reply)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.number);
    }
}

fn is_refusal(reply: &Message) -> bool {
    reply.headers.as_ref().is_some_and(|headers| headers.get(REFUSED).is_some())
}

async fn hand_out(mut replies: Subscriber, waiting: Waiting, wire: Wire) {
    loop {
        let reply = tokio::select! {
            biased;
            () = wire.stopped.cancelled() => return,
            reply = replies.next() => reply,
        };
        let Some(reply) = reply else { return };
        let number = reply.subject.rsplit_once('.').and_then(|(_, number)| number.parse().ok());
        let sender = number.and_then(|number: u64| waiting.lock().remove(&number));
        if let Some(sender) = sender {
            let _gave_up = sender.send(reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::NatsServer;

    use super::*;
    use crate::nats::{NatsOptions, dial};

    #[tokio::test]
    async fn a_request_that_is_given_up_leaves_nothing_behind() {
        let server = NatsServer::start();
        let options = NatsOptions::new(server.url());
        let link = dial::dial(&options, tokio::time::Instant::now()).await.unwrap();
        let asker = Asker::start(link.wire()).await;
        let _silent = link.wire().client.subscribe("silent").await.unwrap();
        let ask = |subject: &str, timeout_ms| {
            let timeout = Duration::from_millis(timeout_ms);
            let asker = asker.clone();
            let subject = subject.to_string();
            async move { asker.ask(subject, None, Bytes::new(), timeout).await.map(drop) }
        };
        assert_eq!(ask("nobody", 5000).await, Err(RequestError::NoResponder));
        assert_eq!(ask("silent", 20).await, Err(RequestError::TimedOut));
        let given_up = tokio::time::timeout(Duration::from_millis(20), ask("silent", 5000));
        assert!(given_up.await.is_err());
        assert!(asker.shared.waiting.lock().is_empty());
    }
}
