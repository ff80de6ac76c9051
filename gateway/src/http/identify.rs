//! Names each request, so that its client and the logs can speak of the same one.

use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");

/// A client's own id is kept up to this length.
const CLIENT_ID_BYTES_MAX: usize = 128;

/// The request's name, for handlers.
#[derive(Clone)]
pub struct RequestId(pub String);

/// Echoes the client's `x-request-id` or makes one, and says how long the response's head took.
pub async fn layer(mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let given = request.headers().get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
    let given = given.filter(|id| !id.is_empty() && id.len() <= CLIENT_ID_BYTES_MAX);
    let id = given.map_or_else(|| random_id("req_"), str::to_string);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(X_REQUEST_ID, id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(began.elapsed().as_millis() as u64));
    response
}

/// A prefix and 128 random bits.
pub fn random_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}
