//! What is known of the cluster's registry.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::push::Ordered;
use async_nats::jetstream::message::Message;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_stream::StreamExt;

use super::bucket::{Bucket, BucketError};
use super::link::Wire;
use crate::table::Table;

/// The pause after the registry could not be read.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long the present state may take to arrive.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the mirror read the registry anew.
#[derive(Clone, Default)]
pub(crate) struct Reread(Arc<Notify>);

impl Reread {
    pub fn now(&self) {
        self.0.notify_one();
    }
}

struct Mirror {
    wire: Wire,
    bucket: Bucket,
    table: Table,
    reread: Reread,
    /// Entries that expired or were not there when a watch began, and how long they are still
    /// believed in. Only while the server is there: it may have lost what it knew, and those who
    /// are alive must have had the time to tell it.
    missing: HashMap<String, Instant>,
    known: Option<oneshot::Sender<()>>,
}

/// Keeps `table` equal to the registry; the receiver says when it is for the first time.
pub(crate) fn start(wire: Wire, bucket: Bucket, table: Table) -> (Reread, oneshot::Receiver<()>) {
    let (known, ready) = oneshot::channel();
    let (reread, stopped) = (Reread::default(), wire.stopped.clone());
    let missing = HashMap::new();
    let mirror =
        Mirror { wire, bucket, table, reread: reread.clone(), missing, known: Some(known) };
    tokio::spawn(async move { stopped.run_until_cancelled(mirror.run()).await });
    (reread, ready)
}

/// What one message of the bucket says of a key.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Put,
    Deleted,
    Expired,
}

impl Mirror {
    async fn run(mut self) {
        loop {
            let connection = self.wire.connected().await;
            let mut state = self.wire.state.clone();
            let ended = tokio::select! {
                biased;
                // Another connection: what it has is another story.
                _ = state.wait_for(|state| !state.up || state.connects != connection) => Ok(()),
                () = self.reread.0.notified() => Ok(()),
                ended = Self::follow(
                    &self.bucket, &self.table, &mut self.missing, &mut self.known,
                ) => ended,
            };
            self.missing.clear();
            if let Err(error) = ended {
                tracing::warn!(%error, "cannot read the registry, trying again");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }

    async fn follow(
        bucket: &Bucket,
        table: &Table,
        missing: &mut HashMap<String, Instant>,
        known: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), BucketError> {
        let (mut messages, present) = bucket.messages().await?;
        let mut following = Following { bucket, table, missing, seen: BTreeSet::new() };
        if present > 0 {
            let snapshot = tokio::time::timeout(SNAPSHOT_TIMEOUT, following.read(&mut messages));
            snapshot.await.map_err(|_| broken("its state does not arrive"))??;
        }
        following.miss_unseen();
        if let Some(known) = known.take() {
            let _gave_up = known.send(());
        }
        following.go_on(&mut messages).await
    }
}

/// A watch of the bucket.
struct Following<'a> {
    bucket: &'a Bucket,
    table: &'a Table,
    missing: &'a mut HashMap<String, Instant>,
    seen: BTreeSet<String>,
}

impl Following<'_> {
    /// Reads what is there at the beginning.
    async fn read(&mut self, messages: &mut Ordered) -> Result<(), BucketError> {
        loop {
            let (message, pending) = next(messages).await?;
            if let Some(key) = self.apply(&message) {
                self.seen.insert(key);
            }
            if pending == 0 {
                return Ok(());
            }
        }
    }

    fn miss_unseen(&mut self) {
        for key in self.table.keys() {
            if !self.seen.contains(&key) {
                self.miss(key);
            }
        }
        self.seen.clear();
    }

    async fn go_on(&mut self, messages: &mut Ordered) -> Result<(), BucketError> {
        loop {
            let deadline = self.missing.values().min().copied();
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = next(messages) => {
                    self.apply(&message?.0);
                }
                () = expiry => self.forget_missing(),
            }
        }
    }

    fn apply(&mut self, message: &Message) -> Option<String> {
        let key = self.bucket.key(&message.subject)?.to_string();
        match fate(message) {
            Fate::Put => {
                self.missing.remove(&key);
                self.table.put(&key, message.payload.clone());
            }
            Fate::Deleted => {
                self.missing.remove(&key);
                self.table.delete(&key);
            }
            Fate::Expired => self.miss(key.clone()),
        }
        Some(key)
    }

    fn miss(&mut self, key: String) {
        if self.table.contains(&key) {
            tracing::debug!(key, "a registry entry is missing");
            let deadline = Instant::now() + self.bucket.expiry_grace;
            self.missing.entry(key).or_insert(deadline);
        }
    }

    fn forget_missing(&mut self) {
        let now = Instant::now();
        self.missing.retain(|key, deadline| {
            if *deadline <= now {
                tracing::info!(key, "a registry entry did not come back, forgetting it");
                self.table.delete(key);
            }
            *deadline > now
        });
    }
}

async fn next(messages: &mut Ordered) -> Result<(Message, u64), BucketError> {
    let message = match messages.next().await {
        Some(Ok(message)) => message,
        Some(Err(error)) => return Err(broken(&error.to_string())),
        None => return Err(broken("the watch ended")),
    };
    let pending = message.info().map_err(|error| broken(&error.to_string()))?.pending;
    Ok((message, pending))
}

fn broken(reason: &str) -> BucketError {
    BucketError { reason: reason.to_string(), passes: true }
}

fn fate(message: &Message) -> Fate {
    let Some(headers) = &message.headers else { return Fate::Put };
    if let Some(operation) = headers.get("KV-Operation") {
        return if operation.as_str() == "PUT" { Fate::Put } else { Fate::Deleted };
    }
    match headers.get(async_nats::header::NATS_MARKER_REASON) {
        None => Fate::Put,
        Some(reason) if reason.as_str() == "MaxAge" => Fate::Expired,
        Some(_) => Fate::Deleted,
    }
}
