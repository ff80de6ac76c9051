//! The JetStream bucket in which the registry lies.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::context::{AccountError, KeyValueErrorKind};
use async_nats::jetstream::{self, kv};

use super::NatsOptions;

/// Markers of deleted and expired keys stay for so many lives of an entry, so that whoever was away
/// meanwhile sees them.
const MARKER_TTLS: u32 = 20;

/// How long the server may take to answer about the bucket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Clones share the connection.
#[derive(Clone)]
pub(crate) struct Bucket {
    context: jetstream::Context,
    name: String,
    prefix: String,
    pub entry_ttl: Duration,
    pub renew_interval: Duration,
    pub expiry_grace: Duration,
}

/// Why the bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct BucketError {
    pub reason: String,
    /// Whether trying again may help.
    pub passes: bool,
}

impl Bucket {
    pub fn new(client: Client, options: &NatsOptions) -> Self {
        let context = jetstream::context::ContextBuilder::new().timeout(ANSWER_TIMEOUT);
        Self {
            context: context.build(client),
            name: options.cluster.clone(),
            prefix: format!("$KV.{}.", options.cluster),
            entry_ttl: options.entry_ttl,
            renew_interval: options.renew_interval,
            expiry_grace: options.expiry_grace,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The subject on which a key is written.
    pub fn subject(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The key that is written on a subject.
    pub fn key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&self.prefix)
    }

    /// How long markers of deleted keys stay.
    pub fn marker_ttl(&self) -> Duration {
        self.entry_ttl * MARKER_TTLS
    }

    /// Whether the account may use JetStream.
    pub async fn account(&self) -> Result<(), AccountError> {
        self.context.query_account().await.map(drop)
    }

    /// The bucket, made where there is none.
    pub async fn open(&self) -> Result<kv::Store, BucketError> {
        let missing = match self.context.get_key_value(&self.name).await {
            Ok(store) => return self.usable(store),
            Err(error) => error,
        };
        if missing.kind() != KeyValueErrorKind::GetBucket {
            return Err(BucketError { reason: missing.to_string(), passes: false });
        }
        match self.context.create_key_value(self.config()).await {
            Ok(store) => Ok(store),
            // Another process may have made it meanwhile.
            Err(error) => match self.context.get_key_value(&self.name).await {
                Ok(store) => self.usable(store),
                Err(_) => Err(BucketError { reason: error.to_string(), passes: true }),
            },
        }
    }

    fn config(&self) -> kv::Config {
        kv::Config {
            bucket: self.name.clone(),
            description: "who is there".to_string(),
            history: 1,
            limit_markers: Some(self.marker_ttl()),
            ..Default::default()
        }
    }

    fn usable(&self, store: kv::Store) -> Result<kv::Store, BucketError> {
        if store.stream.cached_info().config.allow_message_ttl {
            return Ok(store);
        }
        let reason = "it exists and its entries cannot expire; remove it with `nats kv del`, or \
                      choose another cluster name";
        Err(BucketError { reason: reason.to_string(), passes: false })
    }

    /// The last message of each key, and what comes from then on; with how many there are.
    pub async fn messages(&self) -> Result<(push::Ordered, u64), BucketError> {
        let transient = |reason: String| BucketError { reason, passes: true };
        let store = self.open().await?;
        let config = push::OrderedConfig {
            deliver_subject: self.context.client().new_inbox(),
            description: Some("registry watch".to_string()),
            filter_subject: self.subject(">"),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..Default::default()
        };
        let consumer = store.stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| transient(error.to_string()))?;
        let present = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| transient(error.to_string()))?;
        Ok((messages, present))
    }

    /// The subject on which the last message of a key is asked for.
    pub fn last(&self, key: &str) -> String {
        format!("$JS.API.DIRECT.GET.KV_{}.{}", self.name, self.subject(key))
    }
}
