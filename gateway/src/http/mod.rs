//! The HTTP server: routes, what every response carries, and the two generating endpoints.

mod admit;
mod chat;
mod chunks;
mod completions;
mod generate;
mod identify;
mod listing;
mod sse;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use admit::Admission;

use crate::GatewayConfig;
use crate::dispatch::Dispatcher;
use crate::models::Models;
use crate::openai::ApiError;

/// What handlers share.
pub struct Shared {
    models: Arc<Models>,
    dispatcher: Arc<Dispatcher>,
    admission: Admission,
}

/// All routes.
pub fn app(config: GatewayConfig, models: Arc<Models>, dispatcher: Arc<Dispatcher>) -> Router {
    let admission = Admission::new(&config);
    let shared = Arc::new(Shared { models, dispatcher, admission });
    Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/models", get(listing::models))
        .route("/v1/models/{*id}", get(listing::model))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/health/ready", get(ready))
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(identify::layer))
        .with_state(shared)
}

/// Serves until `shutdown`, then until the last request has ended.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    // Without it, small writes of a stream wait for the client's acknowledgements.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn ready(State(shared): State<Arc<Shared>>) -> Result<StatusCode, ApiError> {
    if shared.models.is_ready() { Ok(StatusCode::OK) } else { Err(ApiError::overloaded(1)) }
}

async fn no_such_route(method: Method, uri: Uri) -> ApiError {
    ApiError::route_not_found(method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(method, uri.path())
}
