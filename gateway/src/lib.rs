//! The edge: speaks the OpenAI API over HTTP, turns text into tokens and back, asks the router
//! where a request goes, and passes it to a decode worker.
//!
//! Knows no engine: what it needs of a model comes as a model card from a worker.

mod http;
mod openai;
mod text;
mod tools;

mod choices;
mod dispatch;
mod generation;
mod migration;
mod models;
mod routers;
mod sessions;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

use std::sync::Arc;
use std::time::Duration;

use messaging::Network;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use dispatch::Dispatcher;
use migration::Migrations;
use models::Models;

pub use http::{ConnectionLimits, Origin, OriginError};
pub use models::{CardError, check_card};

/// Limits of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Requests under way; more are answered with 503.
    pub requests_max: usize,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// After a shutdown began, requests may go on for this long.
    pub grace: Duration,
    /// What connections may do.
    pub connections: ConnectionLimits,
    /// A request's body of which nothing comes for this long is given up.
    pub body_silence_max: Duration,
    /// Origins whose pages may ask; without any, no response is marked for browsers.
    pub cors_origins: Vec<Origin>,
    /// For tests that must notice it: an answer that migrates repeats a token.
    pub breaks_migration: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            requests_max: 4096,
            body_bytes_max: 64 << 20,
            grace: Duration::from_secs(10),
            connections: ConnectionLimits::default(),
            body_silence_max: Duration::from_secs(30),
            cors_origins: Vec::new(),
            breaks_migration: false,
        }
    }
}

/// How long clients have to take the error that ends their answers.
const FAREWELL: Duration = Duration::from_millis(500);

/// A gateway: its models, and its ways to workers.
pub struct Gateway {
    config: GatewayConfig,
    models: Arc<Models>,
    dispatcher: Arc<Dispatcher>,
    network: Network,
    /// One permit per request under way.
    requests: Arc<Semaphore>,
    /// Served beside the API.
    routes: axum::Router,
    /// Ends answers under way, with an error.
    cut: CancellationToken,
}

impl Gateway {
    /// A gateway that knows no workers yet.
    pub fn new(config: GatewayConfig, network: Network) -> Self {
        let models = Arc::new(Models::default());
        let migrations = Migrations::new(config.breaks_migration);
        let dispatcher = Arc::new(Dispatcher::new(network.clone(), models.clone(), migrations));
        let requests = Arc::new(Semaphore::new(config.requests_max));
        let (routes, cut) = (axum::Router::new(), CancellationToken::new());
        Self { config, models, dispatcher, network, requests, routes, cut }
    }

    /// Serves these too, `/metrics` for example.
    pub fn with_routes(self, routes: axum::Router) -> Self {
        Self { routes, ..self }
    }

    /// Waits until so many workers are known.
    pub async fn has_workers(&self, workers: usize) {
        self.models.has_workers(workers).await;
    }

    /// The API without a listener.
    pub fn app(&self) -> axum::Router {
        let admission = http::Admission::new(self.requests.clone(), &self.config);
        let (models, dispatcher) = (self.models.clone(), self.dispatcher.clone());
        let (others, origins) = (self.routes.clone(), &self.config.cors_origins);
        http::app(admission, models, dispatcher, self.cut.clone(), others, origins)
    }

    /// Learns of workers and routers, for as long as it is polled.
    pub async fn follow_workers(&self) {
        tokio::join!(self.models.watch(&self.network), self.dispatcher.follow());
    }

    /// Workers known.
    pub fn workers(&self) -> usize {
        self.models.workers()
    }

    /// Routers known.
    pub fn routers(&self) -> usize {
        self.dispatcher.routers()
    }

    /// Requests that went from one worker to another, by cause.
    pub fn migrations(&self) -> Vec<(&'static str, u64)> {
        self.dispatcher.migrations.counts()
    }

    /// Of those, how many went on under another numerics id.
    pub fn migrations_to_other_numerics(&self) -> u64 {
        self.dispatcher.migrations.to_other_numerics()
    }

    /// Routing decisions made here, because no router answered.
    pub fn fallback_decisions(&self) -> u64 {
        self.dispatcher.fallback_decisions()
    }

    /// Requests under way.
    pub fn requests_in_flight(&self) -> usize {
        self.config.requests_max - self.requests.available_permits()
    }

    /// Ends all answers under way with an error, and gives clients time to take it.
    pub async fn cut(&self) {
        self.cut.cancel();
        tokio::time::sleep(FAREWELL).await;
    }

    /// Serves HTTP until `shutdown`, then lets requests end within the grace period. Answers that
    /// are left then end with an error.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        let app = self.app();
        let grace_over = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.config.grace).await;
            tracing::warn!("the grace period is over, answers that are left end with an error");
            self.cut().await;
        };
        tokio::select! {
            biased;
            () = http::serve(listener, app, self.config.connections, shutdown.clone()) => {}
            () = self.follow_workers() => {}
            () = grace_over => {}
        }
    }
}
