//! The edge: speaks the OpenAI API over HTTP, turns text into tokens and back, asks the router
//! where a request goes, and passes it to a decode worker.
//!
//! Knows no engine: what it needs of a model comes as a model card from a worker.

mod http;
mod openai;
mod text;

mod dispatch;
mod generation;
mod models;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use messaging::Network;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use dispatch::Dispatcher;
use models::Models;

pub use models::{CardError, check_card};

/// Limits of a gateway.
#[derive(Clone, Copy, Debug)]
pub struct GatewayConfig {
    /// Requests under way; more are answered with 503.
    pub requests_max: usize,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// After a shutdown began, requests may go on for this long.
    pub grace: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self { requests_max: 4096, body_bytes_max: 64 << 20, grace: Duration::from_secs(10) }
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
}

impl Gateway {
    /// A gateway that knows no workers yet.
    pub fn new(config: GatewayConfig, network: Network) -> Self {
        let models = Arc::new(Models::default());
        let dispatcher = Arc::new(Dispatcher::new(network.clone(), models.clone()));
        Self { config, models, dispatcher, network }
    }

    /// Waits until so many workers are known.
    pub async fn has_workers(&self, workers: usize) {
        self.models.has_workers(workers).await;
    }

    /// The API without a listener. Answers under way end with an error when `cut` is cancelled.
    pub fn app(&self, cut: CancellationToken) -> axum::Router {
        http::app(self.config, self.models.clone(), self.dispatcher.clone(), cut)
    }

    /// Learns of workers, for as long as it is polled.
    pub async fn follow_workers(&self) {
        self.models.watch(&self.network).await;
    }

    /// Serves HTTP until `shutdown`, then lets requests end within the grace period. Answers that
    /// are left then end with an error.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        let cut = CancellationToken::new();
        let app = self.app(cut.clone());
        let grace_over = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.config.grace).await;
            tracing::warn!("the grace period is over, answers that are left end with an error");
            cut.cancel();
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            biased;
            () = http::serve(listener, app, shutdown.clone()) => {}
            () = self.follow_workers() => {}
            () = grace_over => {}
        }
    }
}
