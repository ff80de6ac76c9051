//! What every worker has, whatever its role: an engine on a thread of its own, a model card, an
//! entry in the registry, load reports and KV events.

mod admission;
mod announce;
mod card;
mod engine_loop;
mod grammars;
mod host;
mod latency;
mod news;
mod presence;
mod regression;
mod service;
mod transfers;

use std::sync::Arc;

use engine::{Engine, EngineConfig, Runner, RunnerError};
use messaging::Network;
use protocol::v1::worker_server::WorkerServer;
use protocol::{WorkerLife, v1};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

use service::WorkerService;

pub use card::load_card;
pub use grammars::Grammars;
pub use host::{EngineHost, HostError, KvSnapshot, Reservation, SequenceHandle};
pub use news::{News, Outputs, outputs};
pub use presence::Presence;
pub use transfers::{Copied, Transfers};

/// What a worker is made of.
pub struct WorkerConfig {
    /// Its name and this life.
    pub life: WorkerLife,
    /// Its preference.
    pub role: v1::Role,
    /// What computes.
    pub runner: Box<dyn Runner>,
    /// Where its steps are made.
    pub place: EnginePlace,
    /// Sizes.
    pub engine: EngineConfig,
    /// What gateways need to know of the model (`load_card`).
    pub card: v1::ModelCard,
    /// What it runs on, as far as that is known.
    pub hardware: Option<v1::Hardware>,
}

/// Where an engine's steps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnginePlace {
    /// On a thread of its own.
    Thread,
    /// As a task of the runtime, under its clock: for simulations with mock runners.
    Task,
}

/// A running engine and who it is.
pub struct Worker {
    /// Its name and this life.
    pub life: WorkerLife,
    /// The engine.
    pub host: Arc<EngineHost>,
    /// How it stands to its cluster.
    pub presence: Arc<Presence>,
    /// What its requests' answers must match.
    pub grammars: Arc<Grammars>,
    /// What it learns of how fast blocks come from others.
    pub transfers: Arc<Transfers>,
    registration: v1::WorkerRegistration,
    card: v1::ModelCard,
}

impl Worker {
    /// Starts the engine. Errors: there is no memory for it, or the system refuses a thread.
    pub fn start(config: WorkerConfig) -> Result<Self, StartError> {
        let WorkerConfig { life, role, runner, place, engine: sizes, mut card, hardware } = config;
        let model_id = admission::model_id(&runner.facts().weights_id, &card);
        let grammars = Arc::new(Grammars::new(
            card.tokenizer_json.clone(),
            runner.facts().vocabulary_size,
            runner.facts().eos_token_ids.clone(),
        ));
        let engine = Engine::new(runner, sizes)?;
        card.context_tokens = engine.context_tokens() as u32;
        let registration = v1::WorkerRegistration {
            worker_id: life.id.to_string(),
            incarnation: life.incarnation.0,
            role: role.into(),
            model: card.name.clone(),
            numerics_id: engine.numerics_id().to_string(),
            data_endpoint: format!("{}/{}", life.id, life.incarnation.0),
            block_size: sizes.block_size as u32,
            kv_blocks: sizes.kv_blocks as u32,
            block_bytes: engine.layout().block_bytes() as u32,
            max_num_batched_tokens: sizes.max_num_batched_tokens as u32,
            draining: false,
            model_id,
            features: features(&grammars),
            hardware,
        };
        let host = match place {
            EnginePlace::Thread => EngineHost::start(engine, &life)?,
            EnginePlace::Task => EngineHost::start_as_task(engine),
        };
        let (host, presence) = (Arc::new(host), Arc::new(Presence::new()));
        let transfers = Arc::new(Transfers::new(registration.hardware.clone()));
        Ok(Self { life, host, presence, grammars, transfers, registration, card })
    }

    /// It will not give and read KV blocks by this way after all. To be said before it serves.
    pub fn lose_way(&mut self, way: &str) {
        if let Some(hardware) = &mut self.registration.hardware {
            hardware.kv_ways.retain(|own| own != way);
        }
    }

    /// Where its KV blocks lie, as far as that is known.
    pub fn kv_place(&self) -> Option<&v1::Place> {
        self.registration.hardware.as_ref()?.place.as_ref()
    }

    /// Whether it gives its KV blocks by RDMA, as far as that is known.
    pub fn has_rdma(&self) -> Option<bool> {
        Some(self.registration.hardware.as_ref()?.rdma().is_some())
    }

    /// Tokens computed by workers of one id are equal.
    pub fn numerics_id(&self) -> &str {
        &self.registration.numerics_id
    }

    /// Serves `services` (the role's own, and what every worker serves) and announces the worker
    /// until `shutdown`, which cuts what is under way: whoever drains has let it end before.
    /// Errors: the worker does not go with others of the cluster, its address cannot be listened on,
    /// or the engine or the server ended by itself.
    pub async fn serve(
        &self,
        services: Router,
        network: &Network,
        shutdown: CancellationToken,
    ) -> Result<(), WorkerError> {
        let common = WorkerService::new(self.card.clone(), self.life.clone(), self.host.clone());
        let mut registration = self.registration.clone();
        let listening = network.data_plane.listen(&registration.data_endpoint).await;
        let incoming = listening.map_err(WorkerError::Listen)?;
        let address = incoming.address().map(|address| address.to_string());
        let address = address.unwrap_or_else(|| incoming.endpoint().to_string());
        registration.data_endpoint = incoming.endpoint().to_string();
        let server = services.add_service(WorkerServer::new(common)).serve_with_incoming(incoming);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(()),
            served = server => served.map_err(WorkerError::Server),
            ended = announce::run(self, &registration, address, network) => Err(ended),
        }
    }
}

/// What a worker does beyond the first version of the contract (`WorkerRegistration.features`).
fn features(grammars: &Grammars) -> Vec<String> {
    let grammar = grammars.are_possible().then_some(protocol::FEATURE_GRAMMAR);
    let features = grammar.into_iter().chain([protocol::FEATURE_PROMPT_LOGPROBS]);
    features.map(str::to_string).collect()
}

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no room for its engine.
    #[error(transparent)]
    Engine(#[from] RunnerError),
    /// The system refuses a thread.
    #[error(transparent)]
    Thread(#[from] std::io::Error),
}

/// Why a worker ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The engine's thread ended: its device failed, or by a defect. What it had goes on elsewhere, as
    /// when its process is killed.
    #[error("the engine stopped")]
    EngineStopped(#[source] Option<RunnerError>),
    /// It does not go with another worker of the cluster: a sentence for the user.
    #[error("{0}")]
    Refused(String),
    /// The data plane's address cannot be listened on.
    #[error("cannot listen for the data plane")]
    Listen(#[source] std::io::Error),
    /// The data plane's server failed.
    #[error("the data plane's server failed")]
    Server(#[source] tonic::transport::Error),
}
