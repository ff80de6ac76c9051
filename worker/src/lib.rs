//! What every worker has, whatever its role: an engine on a thread of its own, a model card, an
//! entry in the registry, load reports and KV events.

mod announce;
mod card;
mod host;
mod measure;
mod news;

use std::sync::Arc;

use engine::{Compute, Engine, EngineConfig, Model};
use messaging::Network;
use protocol::{WorkerLife, v1};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

pub use card::load_card;
pub use host::{EngineHost, HostError, Reservation, SequenceHandle};
pub use measure::Speed;
pub use news::{News, Outputs, outputs};

/// What a worker is made of.
pub struct WorkerConfig {
    /// Its name and this life.
    pub life: WorkerLife,
    /// Its preference.
    pub role: v1::Role,
    /// What it computes with; workers of one process share it.
    pub model: Arc<Model>,
    /// What it computes on; workers of one process share it.
    pub compute: Arc<Compute>,
    /// Sizes.
    pub engine: EngineConfig,
    /// What gateways need to know of the model (`load_card`).
    pub card: v1::ModelCard,
}

/// A running engine and who it is.
pub struct Worker {
    /// Its name and this life.
    pub life: WorkerLife,
    /// The engine.
    pub host: Arc<EngineHost>,
    registration: v1::WorkerRegistration,
    card: v1::ModelCard,
}

impl Worker {
    /// Starts the engine. Errors: the system refuses memory or a thread.
    pub fn start(config: WorkerConfig) -> std::io::Result<Self> {
        let WorkerConfig { life, role, model, compute, engine: sizes, mut card } = config;
        let engine = Engine::new(model.clone(), compute, sizes)?;
        card.context_tokens = engine.context_tokens() as u32;
        let registration = v1::WorkerRegistration {
            worker_id: life.id.to_string(),
            incarnation: life.incarnation.0,
            role: role.into(),
            model: card.name.clone(),
            numerics_id: model.numerics_id.clone(),
            data_endpoint: format!("{}/{}", life.id, life.incarnation.0),
            block_size: sizes.block_size as u32,
            kv_blocks: sizes.kv_blocks as u32,
            block_bytes: engine.layout().block_bytes() as u32,
        };
        let host = Arc::new(EngineHost::start(engine, &life)?);
        Ok(Self { life, host, registration, card })
    }

    /// Tokens computed by workers of one id are equal.
    pub fn numerics_id(&self) -> &str {
        &self.registration.numerics_id
    }

    /// Serves `services` (the role's own, and the model card) and announces the worker until
    /// `shutdown`, which cuts what is under way: whoever drains has let it end before. Errors: the engine or the server ended by itself.
    pub async fn serve(
        &self,
        services: Router,
        network: &Network,
        shutdown: CancellationToken,
    ) -> Result<(), WorkerError> {
        let card = v1::worker_server::WorkerServer::new(card::CardService::new(self.card.clone()));
        let incoming = network.data_plane.listen(&self.registration.data_endpoint);
        let server = services.add_service(card).serve_with_incoming(incoming);
        tokio::select! {
            served = server => served.map_err(WorkerError::Server),
            () = announce::run(&self.host, &self.registration, network) => {
                Err(WorkerError::EngineStopped)
            }
            () = shutdown.cancelled() => Ok(()),
        }
    }
}

/// A worker ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The engine's thread ended, by a defect.
    #[error("the engine stopped")]
    EngineStopped,
    /// The data plane's server failed.
    #[error("the data plane's server failed")]
    Server(#[source] tonic::transport::Error),
}
