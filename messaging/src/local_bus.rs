//! The bus of one process.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::bus::{REQUEST_QUEUE, Reply, Request, RequestError, SUBSCRIPTION_QUEUE};
use crate::faults::Faults;

/// Clones share it.
#[derive(Clone, Default)]
pub(crate) struct LocalBus {
    shared: Arc<Shared>,
    faults: Option<Arc<dyn Faults>>,
}

#[derive(Default)]
struct Shared {
    subscribers: Mutex<HashMap<String, Vec<mpsc::Sender<Bytes>>>>,
    responders: Mutex<HashMap<String, mpsc::Sender<Request>>>,
    dropped: AtomicU64,
}

impl LocalBus {
    pub fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Self { faults: Some(faults), ..Default::default() }
    }

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

    pub fn subscribe(&self, subject: &str) -> mpsc::Receiver<Bytes> {
        let (sender, messages) = mpsc::channel(SUBSCRIPTION_QUEUE);
        self.shared.subscribers.lock().entry(subject.to_string()).or_default().push(sender);
        messages
    }

    pub fn respond(&self, subject: &str) -> mpsc::Receiver<Request> {
        let (sender, requests) = mpsc::channel(REQUEST_QUEUE);
        self.shared.responders.lock().insert(subject.to_string(), sender);
        requests
    }

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
            let asked = responder.try_send(Request { payload, reply: Reply::Local(reply) });
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

    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}
