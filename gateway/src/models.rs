//! The models that can be asked, and the workers that serve them, as the registry tells.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use messaging::{Change, Network};
use parking_lot::RwLock;
use prost::Message;
use protocol::v1::worker_client::WorkerClient;
use protocol::{WorkerLife, subjects, v1};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::text::{ChatTemplate, TemplateError, Tokenizer, TokenizerError};

/// Model cards contain a tokenizer, which is far above gRPC's usual limit.
const CARD_BYTES_MAX: usize = 256 << 20;

/// Attempts to fetch a card before a worker is left out.
const CARD_ATTEMPTS: u32 = 5;
const CARD_RETRY_DELAY: Duration = Duration::from_millis(500);
const CARD_TIMEOUT: Duration = Duration::from_secs(10);

/// A model whose workers have gone is known for this long: its requests are told to come again, not
/// that there is no such model.
const MEMORY: Duration = Duration::from_secs(600);

/// What a gateway knows of a model.
pub struct Model {
    /// The name clients put into `model`.
    pub name: String,
    /// Prompt and output together.
    pub context_tokens: usize,
    /// Token ids are below this.
    pub vocabulary_size: usize,
    /// Unix time.
    pub created_s: u64,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to text; a model without one serves completions only.
    pub template: Option<ChatTemplate>,
}

/// A model card that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// tokenizer.json is wrong or of an unknown kind.
    #[error("its tokenizer.json is not usable: {}", explain(.0))]
    Tokenizer(#[from] TokenizerError),
    /// The chat template does not parse, or fails on the simplest conversation.
    #[error("its chat template is not usable: {}", explain(.0))]
    Template(#[from] TemplateError),
}

/// An error with its cause, which says where in the file.
fn explain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error} ({source})"),
        None => error.to_string(),
    }
}

/// Checks that a gateway could serve this card.
pub fn check_card(card: &v1::ModelCard) -> Result<(), CardError> {
    Model::new(card).map(|_| ())
}

impl Model {
    fn new(card: &v1::ModelCard) -> Result<Self, CardError> {
        let vocabulary_size = card.vocabulary_size as usize;
        let tokenizer = Tokenizer::from_bytes(&card.tokenizer_json, vocabulary_size)?;
        Ok(Self {
            name: card.name.clone(),
            context_tokens: card.context_tokens as usize,
            vocabulary_size,
            created_s: card.created_s,
            tokenizer,
            template: template_of(card)?,
        })
    }
}

/// The card's template, once it has rendered the simplest conversation. One that refuses even that
/// with words of its own may still take others.
fn template_of(card: &v1::ModelCard) -> Result<Option<ChatTemplate>, TemplateError> {
    let Some(source) = card.chat_template.clone() else { return Ok(None) };
    let template = ChatTemplate::new(source, card.bos_token.clone(), card.eos_token.clone())?;
    let hello = serde_json::json!({"role": "user", "content": "Hello"});
    match template.render(&[hello], None) {
        Ok(_) | Err(TemplateError::Raised(_)) => Ok(Some(template)),
        Err(error) => Err(error),
    }
}

/// All models and workers. Cheap to read, rarely written.
#[derive(Default)]
pub struct Models {
    known: RwLock<Known>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    models: BTreeMap<String, KnownModel>,
    workers: HashMap<WorkerLife, v1::WorkerRegistration>,
}

struct KnownModel {
    model: Arc<Model>,
    /// When its last worker went.
    left: Option<Instant>,
}

impl Models {
    /// The model of this name; also if its workers are away for now.
    pub fn get(&self, name: &str) -> Option<Arc<Model>> {
        let known = self.known.read();
        known
            .models
            .get(name)
            .filter(|known| !known.is_forgotten())
            .map(|known| known.model.clone())
    }

    /// All models that have workers, by name.
    pub fn all(&self) -> Vec<Arc<Model>> {
        let known = self.known.read();
        let served = known.models.values().filter(|known| known.left.is_none());
        served.map(|known| known.model.clone()).collect()
    }

    /// How to reach one life of a worker.
    pub fn worker(&self, life: &WorkerLife) -> Option<v1::WorkerRegistration> {
        self.known.read().workers.get(life).cloned()
    }

    /// The numerics ids under which a model is served, with their block sizes.
    pub fn numerics_of(&self, model: &str) -> BTreeSet<(String, usize)> {
        let known = self.known.read();
        let serving = known.workers.values().filter(|worker| worker.model == model);
        serving.map(|worker| (worker.numerics_id.clone(), worker.block_size as usize)).collect()
    }

    /// Whether a request could be served: some model has a worker that decodes.
    pub fn is_ready(&self) -> bool {
        let known = self.known.read();
        known.workers.values().any(|worker| worker.role() == v1::Role::Decode)
    }

    /// Waits until so many workers are known.
    pub async fn has_workers(&self, workers: usize) {
        loop {
            let changed = self.changed.notified();
            if self.known.read().workers.len() >= workers {
                return;
            }
            changed.await;
        }
    }

    /// Follows the registry.
    pub async fn watch(&self, network: &Network) {
        loop {
            // Where the last watch lagged too far behind, what is gone now is forgotten.
            let (present, mut workers) = network.registry.watch(subjects::WORKERS);
            self.keep(&present.iter().map(|(key, _)| key.as_str()).collect());
            for (key, value) in present {
                self.apply(Change::Put(key, value), network).await;
            }
            while let Some(change) = workers.next().await {
                self.apply(change, network).await;
            }
        }
    }

    async fn apply(&self, change: Change, network: &Network) {
        match change {
            Change::Put(key, value) => match v1::WorkerRegistration::decode(value) {
                Ok(registration) => self.add(registration, network).await,
                Err(error) => tracing::warn!(key, %error, "unreadable registration"),
            },
            Change::Deleted(key) => self.known.write().retain(|worker| worker != key),
        }
        self.changed.notify_waiters();
    }

    fn keep(&self, keys: &HashSet<&str>) {
        self.known.write().retain(|worker| keys.contains(worker));
    }

    async fn add(&self, registration: v1::WorkerRegistration, network: &Network) {
        let is_served =
            |known: &Known| known.models.get(&registration.model).is_some_and(|m| m.left.is_none());
        // A model that comes back may have changed meanwhile.
        if !is_served(&self.known.read()) {
            let Some(model) = fetch_model(&registration, network).await else { return };
            let name = model.name.clone();
            let known = KnownModel { model: Arc::new(model), left: None };
            self.known.write().models.insert(name, known);
        }
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        self.known.write().workers.insert(life, registration);
    }
}

impl Known {
    /// Keeps the workers with such registry keys.
    fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let Known { models, workers } = self;
        workers.retain(|life, _| keep(&subjects::worker_key(life)));
        for (name, known) in models.iter_mut() {
            if !workers.values().any(|worker| worker.model == *name) {
                known.left.get_or_insert_with(Instant::now);
            }
        }
        models.retain(|_, known| !known.is_forgotten());
    }
}

impl KnownModel {
    fn is_forgotten(&self) -> bool {
        self.left.is_some_and(|left| left.elapsed() > MEMORY)
    }
}

async fn fetch_model(registration: &v1::WorkerRegistration, network: &Network) -> Option<Model> {
    let worker = &registration.worker_id;
    for _ in 0..CARD_ATTEMPTS {
        let fetched = tokio::time::timeout(CARD_TIMEOUT, fetch_card(registration, network)).await;
        match fetched.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(card) => {
                let parsed = tokio::task::spawn_blocking(move || Model::new(&card)).await.ok()?;
                return parsed
                    .inspect_err(|error| tracing::error!(worker, %error, "unusable model card"))
                    .ok();
            }
            Err(error) => tracing::warn!(worker, %error, "cannot fetch the model card"),
        }
        tokio::time::sleep(CARD_RETRY_DELAY).await;
    }
    tracing::error!(worker, "no model card after {CARD_ATTEMPTS} attempts, leaving it out");
    None
}

async fn fetch_card(
    registration: &v1::WorkerRegistration,
    network: &Network,
) -> Result<v1::ModelCard, Box<dyn std::error::Error + Send + Sync>> {
    let channel = network.data_plane.connect(&registration.data_endpoint).await?;
    let mut client = WorkerClient::new(channel).max_decoding_message_size(CARD_BYTES_MAX);
    Ok(client.get_model_card(v1::GetModelCardRequest {}).await?.into_inner())
}
