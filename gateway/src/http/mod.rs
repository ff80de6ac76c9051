//! The HTTP server: routes, what every response carries, and the two generating endpoints.

mod admit;
mod chat;
mod chunks;
mod completions;
mod generate;
mod identify;
mod listing;
mod serve;
mod sse;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

pub use admit::Admission;
pub use serve::serve;

use crate::dispatch::Dispatcher;
use crate::models::Models;
use crate::openai::ApiError;

/// What handlers share.
pub struct Shared {
    models: Arc<Models>,
    dispatcher: Arc<Dispatcher>,
    admission: Admission,
    /// Cancelled when the server cannot wait for answers any longer.
    cut: CancellationToken,
}

/// All routes. Answers under way end with an error when `cut` is cancelled.
pub fn app(
    admission: Admission,
    models: Arc<Models>,
    dispatcher: Arc<Dispatcher>,
    cut: CancellationToken,
) -> Router {
    let shared = Arc::new(Shared { models, dispatcher, admission, cut });
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

async fn ready(State(shared): State<Arc<Shared>>) -> Result<StatusCode, ApiError> {
    if shared.models.is_ready() { Ok(StatusCode::OK) } else { Err(ApiError::overloaded(1)) }
}

async fn no_such_route(method: Method, uri: Uri) -> ApiError {
    ApiError::route_not_found(method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(method, uri.path())
}
