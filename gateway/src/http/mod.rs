//! The HTTP server: routes, what every response carries, and the endpoints.

mod bare_refusal;
mod client_stream;
mod connection;
mod http2_streams;
mod serve;

mod cors;
mod elsewhere;
mod identify;

mod admit;
mod asked;
mod chat;
mod completions;
mod constrain;
mod generate;

mod chunks;
mod echo;
mod speaker;
mod sse;
mod whole;

mod listing;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

pub use admit::Admission;
pub use connection::ConnectionLimits;
use constrain::GrammarCheck;
pub use cors::{Origin, OriginError};
pub use serve::serve;

use crate::dispatch::Dispatcher;
use crate::models::Models;
use crate::openai::ApiError;

/// What handlers share.
pub struct Shared {
    models: Arc<Models>,
    dispatcher: Arc<Dispatcher>,
    admission: Admission,
    grammars: GrammarCheck,
    /// Cancelled when the server cannot wait for answers any longer.
    cut: CancellationToken,
}

/// All routes, `others` among them, for pages of `origins` too. Answers under way end with an error
/// when `cut` is cancelled.
pub fn app(
    admission: Admission,
    models: Arc<Models>,
    dispatcher: Arc<Dispatcher>,
    cut: CancellationToken,
    others: Router,
    origins: &[Origin],
) -> Router {
    let shared =
        Arc::new(Shared { models, dispatcher, admission, grammars: GrammarCheck::new(), cut });
    let routes = api("/v1")
        .merge(api(""))
        .route("/openapi.json", get(listing::openapi))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/health/ready", get(ready))
        .with_state(shared)
        .merge(others)
        .fallback(elsewhere::no_such_route)
        .method_not_allowed_fallback(elsewhere::wrong_method);
    let routes = match cors::layer(origins) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.layer(middleware::from_fn(identify::layer))
}

/// What clients ask for under `/v1`, and some without.
fn api(base: &str) -> Router<Arc<Shared>> {
    let at = |path| format!("{base}{path}");
    Router::new()
        .route(&at("/chat/completions"), post(chat::handle))
        .route(&at("/completions"), post(completions::handle))
        .route(&at("/models"), get(listing::models))
        .route(&at("/models/{*id}"), get(listing::model))
        .route(&at("/tokenize"), post(tokenize::tokenize))
        .route(&at("/detokenize"), post(tokenize::detokenize))
}

async fn ready(State(shared): State<Arc<Shared>>) -> Result<StatusCode, ApiError> {
    if shared.models.is_ready() { Ok(StatusCode::OK) } else { Err(ApiError::overloaded(1)) }
}
