//! The admin server: `/health`, `/health/ready`, `/metrics`.

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Metrics;

/// What Prometheus asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All three. `/health` says that the process answers; `/health/ready`, with 200 or 503, what
/// `ready` says.
pub fn routes(
    metrics: &Metrics,
    ready: impl Fn() -> bool + Clone + Send + Sync + 'static,
) -> Router {
    let readiness = move || async move {
        match ready() {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/health/ready", get(readiness))
        .merge(metrics_route(metrics))
}

/// `/metrics` alone, for a server that has health routes of its own.
pub fn metrics_route<S: Clone + Send + Sync + 'static>(metrics: &Metrics) -> Router<S> {
    let metrics = metrics.clone();
    let text =
        move || async move { ([(CONTENT_TYPE, OPENMETRICS)], metrics.text()).into_response() };
    Router::new().route("/metrics", get(text))
}

/// Serves until `shutdown`. Errors: the listener fails.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let ended = async move { shutdown.cancelled().await };
    axum::serve(listener, routes).with_graceful_shutdown(ended).await
}
