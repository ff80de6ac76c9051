//! The entries of this process, kept alive in the registry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL, NATS_SEQUENCE};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::asker::Asker;
use super::bucket::Bucket;
use super::link::{Link, Wire};
use super::mirror::Reread;
use crate::bus::RequestError;

/// Entries whose acknowledgements are waited for at once.
const BATCH: usize = 128;

/// How long the server may take to acknowledge an entry.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Entries that are due so soon are written together.
const COALESCE: Duration = Duration::from_millis(50);

/// The pause before an entry is tried again that the server did not take.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The pause before an entry is tried again for which there was no bucket.
const NEW_BUCKET_DELAY: Duration = Duration::from_millis(200);

/// A handle to the entries of this process. Clones share them.
#[derive(Clone)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    _link: Arc<Link>,
}

#[derive(Default)]
struct Shared {
    entries: Mutex<HashMap<String, Entry>>,
    /// Something is to be written.
    wake: Notify,
    /// Something was written.
    written: Notify,
}

/// What is to stand in the registry under one key.
struct Entry {
    /// None: nothing, and the entry is forgotten once that is so.
    value: Option<Bytes>,
    /// The sequence number of its last message, as far as known.
    revision: u64,
    /// Whether the server acknowledged `value`.
    written: bool,
    due: Instant,
}

/// One message to the bucket, and what came of it.
struct Write {
    key: String,
    value: Option<Bytes>,
    revision: u64,
}

enum Outcome {
    Written(u64),
    /// This revision is there, and another was expected.
    Conflict(u64),
    /// There is no bucket.
    NoBucket,
    Failed(String),
}

impl Keeper {
    pub fn start(link: &Arc<Link>, asker: Asker, bucket: Bucket, reread: Reread) -> Self {
        let (shared, wire) = (Arc::new(Shared::default()), link.wire().clone());
        let stopped = wire.stopped.clone();
        let writer = Writer { shared: shared.clone(), wire, asker, bucket, reread };
        tokio::spawn(async move { stopped.run_until_cancelled(writer.run()).await });
        Self { shared, _link: link.clone() }
    }

    /// Writes an entry and keeps it alive.
    pub fn put(&self, key: &str, value: Bytes) {
        self.set(key, Some(value));
    }

    /// Removes an entry.
    pub fn delete(&self, key: &str) {
        self.set(key, None);
    }

    fn set(&self, key: &str, value: Option<Bytes>) {
        if !is_key(key) {
            return tracing::error!(key, "this cannot be a key of the registry");
        }
        let mut entries = self.shared.entries.lock();
        let revision = entries.get(key).map_or(0, |entry| entry.revision);
        let entry = Entry { value, revision, written: false, due: Instant::now() };
        entries.insert(key.to_string(), entry);
        self.shared.wake.notify_one();
    }

    /// Waits until the server has everything that is to stand in the registry.
    pub async fn flushed(&self) {
        loop {
            let written = self.shared.written.notified();
            if self.shared.entries.lock().values().all(|entry| entry.written) {
                return;
            }
            written.await;
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    wire: Wire,
    asker: Asker,
    bucket: Bucket,
    reread: Reread,
}

impl Writer {
    async fn run(mut self) {
        let mut connection = self.wire.connected().await;
        loop {
            self.until_due(connection).await;
            let now = self.wire.connected().await;
            if std::mem::replace(&mut connection, now) != now {
                // Whatever the server had may have expired or be lost.
                self.all_due();
            }
            let writes = self.due_writes();
            let outcomes = join_all(writes.iter().map(|write| self.write(write))).await;
            for (write, outcome) in writes.iter().zip(&outcomes) {
                self.settle(write, outcome);
            }
            self.shared.written.notify_waiters();
            self.complain(&writes, &outcomes);
            if outcomes.iter().any(|outcome| matches!(outcome, Outcome::NoBucket)) {
                self.make_bucket().await;
            }
        }
    }

    /// One line for all that went wrong, where the server is there at all.
    fn complain(&self, writes: &[Write], outcomes: &[Outcome]) {
        let failed = writes.iter().zip(outcomes).filter_map(|(write, outcome)| match outcome {
            Outcome::Failed(error) => Some((&write.key, error)),
            _ => None,
        });
        let count = failed.clone().count();
        if let Some((key, error)) =
            failed.into_iter().next().filter(|_| self.wire.state.borrow().up)
        {
            tracing::warn!(count, key, error, "the registry did not take entries, trying again");
        }
    }

    /// Waits until an entry is due, or for another connection.
    async fn until_due(&mut self, connection: u64) {
        let due = self.shared.entries.lock().values().map(|entry| entry.due).min();
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shared.wake.notified() => {}
            _ = self.wire.state.wait_for(|state| state.connects != connection) => {}
            () = due => {}
        }
    }

    fn all_due(&self) {
        let now = Instant::now();
        self.shared.entries.lock().values_mut().for_each(|entry| entry.due = now);
    }

    fn due_writes(&self) -> Vec<Write> {
        let soon = Instant::now() + COALESCE;
        let entries = self.shared.entries.lock();
        let due = entries.iter().filter(|(_, entry)| entry.due <= soon).take(BATCH);
        due.map(|(key, entry)| Write {
            key: key.clone(),
            value: entry.value.clone(),
            revision: entry.revision,
        })
        .collect()
    }

    async fn write(&self, write: &Write) -> Outcome {
        let mut headers = HeaderMap::new();
        let ttl = if write.value.is_some() {
            // A write that was long under way must not come after a newer one.
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, write.revision.to_string());
            self.bucket.entry_ttl
        } else {
            headers.insert("KV-Operation", "DEL");
            self.bucket.marker_ttl()
        };
        headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)));
        let payload = write.value.clone().unwrap_or_default();
        let subject = self.bucket.subject(&write.key);
        let message = match self.asker.ask(subject, Some(headers), payload, ACK_TIMEOUT).await {
            Ok(message) => message,
            Err(RequestError::NoResponder) => return Outcome::NoBucket,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
            Ok(Response::Ok(ack)) => Outcome::Written(ack.sequence),
            Ok(Response::Err { error }) if is_conflict(&error) => {
                match self.revision(&write.key).await {
                    Ok(revision) => Outcome::Conflict(revision),
                    Err(error) => Outcome::Failed(error.to_string()),
                }
            }
            Ok(Response::Err { error }) => Outcome::Failed(error.to_string()),
            Err(error) => Outcome::Failed(format!("unreadable acknowledgement: {error}")),
        }
    }

    /// The sequence number of the last message of a key, 0 where there is none.
    async fn revision(&self, key: &str) -> Result<u64, RequestError> {
        let asked = self.asker.ask(self.bucket.last(key), None, Bytes::new(), ACK_TIMEOUT);
        let headers = asked.await?.headers;
        let sequence = headers.as_ref().and_then(|headers| headers.get(NATS_SEQUENCE));
        Ok(sequence.and_then(|sequence| sequence.as_str().parse().ok()).unwrap_or(0))
    }

    fn settle(&self, write: &Write, outcome: &Outcome) {
        let revision = match outcome {
            Outcome::Written(revision) | Outcome::Conflict(revision) => *revision,
            Outcome::NoBucket | Outcome::Failed(_) => write.revision,
        };
        let written = matches!(outcome, Outcome::Written(_));
        let mut entries = self.shared.entries.lock();
        let Some(entry) = entries.get_mut(&write.key) else { return };
        entry.revision = revision;
        if entry.value != write.value {
            // Changed meanwhile; it is due already.
            return;
        }
        entry.written |= written;
        if written && entry.value.is_none() {
            entries.remove(&write.key);
            return;
        }
        let pause = match outcome {
            Outcome::Written(_) => spread(self.bucket.renew_interval),
            Outcome::Conflict(_) => Duration::ZERO,
            Outcome::NoBucket => spread(NEW_BUCKET_DELAY),
            Outcome::Failed(_) => spread(RETRY_DELAY),
        };
        entry.due = Instant::now() + pause;
    }

    async fn make_bucket(&self) {
        match self.bucket.open().await {
            Ok(_) => self.reread.now(),
            Err(error) => tracing::warn!(%error, "cannot make the registry's bucket"),
        }
    }
}

/// What JetStream takes as a key.
fn is_key(key: &str) -> bool {
    let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte);
    !key.is_empty() && key.bytes().all(taken) && key.split('.').all(|part| !part.is_empty())
}

/// A little less than `interval`, differently for each entry, so that they do not all come at once.
fn spread(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.7..1.0))
}

fn is_conflict(error: &jetstream::Error) -> bool {
    matches!(
        error.error_code(),
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_a_subject_may_hold() {
        let check = |key: &str, expected| assert_eq!(is_key(key), expected, "{key:?}");
        check("workers/decode-8c1d/17", true);
        check("a.b=c_d", true);
        check("", false);
        check("workers/a b", false);
        check("workers/*", false);
        check(".a", false);
        check("a..b", false);
    }
}
