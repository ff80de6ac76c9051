//! Request bodies.

use axum::body::{Body, to_bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::LengthLimitError;
use serde_json::Value;

use crate::openai::ApiError;

/// Reads a JSON body of at most `bytes_max`.
pub async fn read_json(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<Value, ApiError> {
    check_content_type(headers)?;
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let declared = declared.and_then(|text| text.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > bytes_max) {
        return Err(ApiError::body_too_large(bytes_max));
    }
    let bytes = to_bytes(body, bytes_max).await.map_err(|error| {
        if error.into_inner().is::<LengthLimitError>() {
            return ApiError::body_too_large(bytes_max);
        }
        ApiError::unreadable_body()
    })?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::malformed_json(&error))
}

/// JSON, with whatever parameters; or nothing said, as some clients do.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::unsupported_content_type(Some(text)))
}
