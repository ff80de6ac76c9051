//! The models that can be asked, and the workers that serve them, as the registry tells.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use grammar::{Compiler, GrammarError};
use messaging::{Change, Network};
use parking_lot::RwLock;
use prost::Message;
use protocol::v1::worker_client::WorkerClient;
use protocol::{WorkerLife, subjects, v1};
use tokenizer::{Tokenizer, TokenizerError};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::text::{ChatTemplate, TemplateError};
use crate::tools::Dialect;

/// Model cards contain a tokenizer, which is far above gRPC's usual limit.
const CARD_BYTES_MAX: usize = 256 << 20;

/// How long a card may take, and when it is asked for again. For as long as the worker is there.
const CARD_TIMEOUT: Duration = Duration::from_secs(10);
const CARD_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A worker's card does for all of its model; another one is asked where it takes so long.
const SECOND_OPINION: Duration = Duration::from_secs(1);

/// Cards that are fetched at once; others wait.
const FETCHES_MAX: usize = 16;

/// Workers whose cards are wanted; further ones are left out.
const WORKERS_MAX: usize = 16_384;

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
    pub tokenizer: Arc<Tokenizer>,
    /// What ends a text, as the grammars' compiler needs to know it.
    eos_token_id: Option<u32>,
    /// Made for the first request with a grammar.
    compiler: OnceLock<Result<Compiler, GrammarError>>,
    /// Messages to text; a model without one serves completions only.
    pub template: Option<ChatTemplate>,
    /// How it writes calls and reasoning.
    pub dialect: Dialect,
}

/// Numerics ids, each with a block size.
pub type Numerics = BTreeSet<(String, usize)>;

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
            dialect: Dialect::of(card.chat_template.as_deref(), &tokenizer),
            eos_token_id: card.eos_token.as_ref().and_then(|token| tokenizer.token_id(token)),
            tokenizer: Arc::new(tokenizer),
            compiler: OnceLock::new(),
            template: template_of(card)?,
        })
    }
}

impl Model {
    /// The grammar of this text, if it was compiled lately.
    pub fn has_compiled(&self, grammar: &str) -> bool {
        let compiler = self.compiler.get().and_then(|compiler| compiler.as_ref().ok());
        compiler.is_some_and(|compiler| compiler.cached(grammar).is_some())
    }

    /// Reads the vocabulary as grammars need it, which takes up to a second, once.
    pub fn prepare_grammars(&self) {
        self.compiler();
    }

    /// Whether answers can be made to match a grammar; takes some 100 ms at most.
    pub fn check_grammar(&self, grammar: &str) -> Result<(), GrammarError> {
        self.compiler().as_ref().map_err(GrammarError::clone)?.compile(grammar).map(|_| ())
    }
}

impl Model {
    fn compiler(&self) -> &Result<Compiler, GrammarError> {
        self.compiler.get_or_init(|| {
            let ends: Vec<u32> = self.eos_token_id.into_iter().collect();
            Compiler::new(self.tokenizer.clone(), self.vocabulary_size, &ends)
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
    /// What its workers said it is: weights, tokenizer and template.
    model_id: String,
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

    /// Workers known.
    pub fn workers(&self) -> usize {
        self.known.read().workers.len()
    }

    /// The numerics ids under which a model is served, with their block sizes.
    pub fn numerics_of(&self, model: &str) -> Numerics {
        let known = self.known.read();
        let serving = known.workers.values().filter(|worker| worker.model == model);
        serving.map(|worker| (worker.numerics_id.clone(), worker.block_size as usize)).collect()
    }

    /// How many workers of a model have all these features, and which lack one.
    pub fn workers_with(&self, model: &str, features: &[&str]) -> (usize, Vec<WorkerLife>) {
        let known = self.known.read();
        let has = |worker: &v1::WorkerRegistration, feature: &&str| {
            worker.features.iter().any(|present| present == feature)
        };
        let serving = known.workers.iter().filter(|(_, worker)| worker.model == model);
        let (able, unable): (Vec<_>, Vec<_>) =
            serving.partition(|(_, worker)| features.iter().all(|feature| has(worker, feature)));
        let mut unable: Vec<WorkerLife> =
            unable.into_iter().map(|(life, _)| life.clone()).collect();
        unable.sort_unstable();
        (able.len(), unable)
    }

    /// Whether a request could be served: some model has a worker that stays.
    pub fn is_ready(&self) -> bool {
        self.known.read().workers.values().any(|worker| !worker.draining)
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
        let mut cards = Cards::default();
        loop {
            // Where the last watch lagged too far behind, what is gone now is forgotten.
            let (present, mut workers) = network.registry.watch(subjects::WORKERS);
            self.keep(&present.iter().map(|(key, _)| key.as_str()).collect());
            for (key, value) in present {
                self.apply(Change::Put(key, value), network, &mut cards);
            }
            loop {
                tokio::select! {
                    biased;
                    change = workers.next() => match change {
                        Some(change) => self.apply(change, network, &mut cards),
                        None => break,
                    },
                    (registrations, model) = cards.next(network) => {
                        registrations.into_iter().for_each(|worker| self.add(worker, model.clone()));
                    }
                }
                self.changed.notify_waiters();
            }
        }
    }

    fn apply(&self, change: Change, network: &Network, cards: &mut Cards) {
        match change {
            Change::Put(key, value) => match v1::WorkerRegistration::decode(value) {
                Ok(registration) if self.is_another_model(&registration) => {
                    let (worker, model) = (&registration.worker_id, &registration.model);
                    tracing::error!(
                        worker,
                        model,
                        "the worker serves another model under a name that is taken, so it gets no \
                         requests; start it with another --model-name"
                    );
                }
                Ok(registration) => match self.served(&registration) {
                    Some(model) => self.add(registration, model),
                    None => cards.want(registration, network),
                },
                Err(error) => tracing::warn!(key, %error, "unreadable registration"),
            },
            Change::Deleted(key) => {
                if let Some(life) = subjects::life_of_worker_key(&key) {
                    cards.forget(&life);
                }
                self.known.write().retain(|worker| worker != key);
            }
        }
    }

    fn keep(&self, keys: &HashSet<&str>) {
        self.known.write().retain(|worker| keys.contains(worker));
    }

    /// The model that a worker serves, if it is known. One that comes back may have changed meanwhile.
    fn served(&self, registration: &v1::WorkerRegistration) -> Option<Arc<Model>> {
        let known = self.known.read();
        let model = known.models.get(&registration.model).filter(|known| known.left.is_none())?;
        Some(model.model.clone())
    }

    fn is_another_model(&self, registration: &v1::WorkerRegistration) -> bool {
        let known = self.known.read();
        let served = known.models.get(&registration.model).filter(|known| known.left.is_none());
        served.is_some_and(|served| served.model_id != registration.model_id)
    }

    fn add(&self, registration: v1::WorkerRegistration, model: Arc<Model>) {
        if self.is_another_model(&registration) {
            return;
        }
        let mut known = self.known.write();
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        let model_id = registration.model_id.clone();
        let served = KnownModel { model, model_id, left: None };
        known.models.insert(registration.model.clone(), served);
        // A later life of a worker is there instead of earlier ones.
        known.workers.retain(|other, _| other.id != life.id || *other > life);
        known.workers.insert(life, registration);
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

/// Model cards on their way. A worker is known once its model is; one card does for all workers of a
/// model that came meanwhile.
#[derive(Default)]
struct Cards {
    fetches: JoinSet<(WorkerLife, Result<Model, String>)>,
    /// In order, so that a simulation replays.
    wanted: BTreeMap<WorkerLife, Wanted>,
}

struct Wanted {
    registration: v1::WorkerRegistration,
    /// Since when its card is on its way.
    asked: Option<Instant>,
}

impl Cards {
    /// Asks a worker for its card, unless that is under way.
    fn want(&mut self, registration: v1::WorkerRegistration, network: &Network) {
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        if self.wanted.len() >= WORKERS_MAX {
            tracing::warn!(worker = %life.id, "too many workers, leaving it out");
            return;
        }
        let asked = self.wanted.get(&life).and_then(|wanted| wanted.asked);
        self.wanted.insert(life, Wanted { registration, asked });
        self.begin(network);
    }

    /// A worker has gone.
    fn forget(&mut self, life: &WorkerLife) {
        self.wanted.remove(life);
    }

    /// The next model that came, and the workers that serve it. Waits for ever while none is on its way.
    async fn next(&mut self, network: &Network) -> (Vec<v1::WorkerRegistration>, Arc<Model>) {
        loop {
            let Some(joined) = self.fetches.join_next().await else { std::future::pending().await };
            let Ok((life, fetched)) = joined else {
                tracing::error!("the fetch of a model card was cut short");
                continue;
            };
            let served = fetched.map(|model| (self.serving(&life), Arc::new(model)));
            if let Err(error) = &served
                && let Some(wanted) = self.wanted.get_mut(&life)
            {
                let (worker, address) = (&life.id, &wanted.registration.data_endpoint);
                tracing::error!(
                    %worker, address, error,
                    "cannot fetch the worker's model card, so it gets no requests; it must be \
                     reachable at this address (--advertise)"
                );
                wanted.asked = None;
            }
            self.begin(network);
            if let Ok(served) = served {
                return served;
            }
        }
    }

    /// Takes out the workers that wait for the model of this one.
    fn serving(&mut self, life: &WorkerLife) -> Vec<v1::WorkerRegistration> {
        let Some(Wanted { registration, .. }) = self.wanted.get(life) else { return Vec::new() };
        let model = registration.model.clone();
        let served = self.wanted.extract_if(.., |_, wanted| wanted.registration.model == model);
        served.map(|(_, wanted)| wanted.registration).collect()
    }

    /// Asks one worker of each model that is not known, and another one where that takes long.
    fn begin(&mut self, network: &Network) {
        let now = Instant::now();
        let lately = |wanted: &&Wanted| {
            wanted.asked.is_some_and(|asked| now.duration_since(asked) < SECOND_OPINION)
        };
        let asked = self.wanted.values().filter(lately);
        let mut asked: BTreeSet<String> = asked.map(|w| w.registration.model.clone()).collect();
        for (life, wanted) in self.wanted.iter_mut().filter(|(_, wanted)| wanted.asked.is_none()) {
            let is_next = asked.insert(wanted.registration.model.clone());
            if is_next && self.fetches.len() < FETCHES_MAX {
                wanted.asked = Some(now);
                let endpoint = wanted.registration.data_endpoint.clone();
                self.fetches.spawn(fetch(life.clone(), endpoint, network.clone()));
            }
        }
    }
}

/// A failure comes after a pause, so that a worker is not asked all the time.
async fn fetch(
    life: WorkerLife,
    endpoint: String,
    network: Network,
) -> (WorkerLife, Result<Model, String>) {
    let fetched = tokio::time::timeout(CARD_TIMEOUT, fetch_card(&endpoint, &network)).await;
    let model = match fetched {
        Ok(Ok(card)) => {
            let parsed = tokio::task::spawn_blocking(move || Model::new(&card)).await;
            let parsed = parsed.map_err(|error| error.to_string());
            parsed.and_then(|parsed| parsed.map_err(|error| error.to_string()))
        }
        Ok(Err(error)) => Err(explain(error.as_ref())),
        Err(_) => Err("no answer in time".into()),
    };
    if model.is_err() {
        tokio::time::sleep(CARD_RETRY_DELAY).await;
    }
    (life, model)
}

async fn fetch_card(
    endpoint: &str,
    network: &Network,
) -> Result<v1::ModelCard, Box<dyn std::error::Error + Send + Sync>> {
    let channel = network.data_plane.connect(endpoint).await?;
    let mut client = WorkerClient::new(channel).max_decoding_message_size(CARD_BYTES_MAX);
    Ok(client.get_model_card(v1::GetModelCardRequest {}).await?.into_inner())
}
