//! Admission: a place among the requests under way, then the request's body, both before any work.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::LengthLimitError;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::identify::RequestId;
use crate::GatewayConfig;
use crate::openai::ApiError;

/// When to come back if too many requests are under way.
const FULL_RETRY_S: u64 = 1;

/// Bodies are counted in units of this size.
const BODY_UNIT_BYTES: usize = 1024;

/// The places there are.
pub struct Admission {
    /// One permit per request under way.
    requests: Arc<Semaphore>,
    /// One permit per unit of the bodies being read and parsed: together no more than one largest
    /// body, since JSON takes far more room once it is parsed.
    body_units: Semaphore,
    body_bytes_max: usize,
}

/// A request that has its place, until this is dropped.
pub struct Admitted {
    /// Its name.
    pub request_id: String,
    /// Its place.
    pub room: OwnedSemaphorePermit,
    /// Size of its body.
    pub body_bytes: usize,
}

impl Admission {
    /// All places free.
    pub fn new(config: &GatewayConfig) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(config.requests_max)),
            body_units: Semaphore::new(units(config.body_bytes_max) as usize),
            body_bytes_max: config.body_bytes_max,
        }
    }

    /// Takes a place and parses the body by `parse`, which is given JSON. Errors: no place is
    /// free, or the body is not acceptable.
    pub async fn admit<T>(
        &self,
        request: Request,
        parse: impl FnOnce(&Value) -> Result<T, ApiError>,
    ) -> Result<(Admitted, T), ApiError> {
        let room = self.requests.clone().try_acquire_owned();
        let room = room.map_err(|_| ApiError::overloaded(FULL_RETRY_S))?;
        let (parts, body) = request.into_parts();
        check_content_type(&parts.headers)?;
        let bytes_max = self.declared_bytes(&parts.headers)?;
        let reading = self.body_units.acquire_many(units(bytes_max)).await;
        let _reading = reading.map_err(|_| ApiError::internal())?;
        let bytes = self.read(body, bytes_max).await?;
        let json = serde_json::from_slice(&bytes).map_err(|e| ApiError::malformed_json(&e))?;
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
        let request_id = request_id.unwrap_or_default();
        Ok((Admitted { request_id, room, body_bytes: bytes.len() }, parse(&json)?))
    }

    /// How large the body says it is; as large as may be where it does not say.
    fn declared_bytes(&self, headers: &HeaderMap) -> Result<usize, ApiError> {
        let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let declared = declared.and_then(|text| text.parse::<usize>().ok());
        let bytes = declared.unwrap_or(self.body_bytes_max);
        if bytes > self.body_bytes_max {
            return Err(ApiError::body_too_large(self.body_bytes_max));
        }
        Ok(bytes)
    }

    async fn read(&self, body: Body, bytes_max: usize) -> Result<bytes::Bytes, ApiError> {
        to_bytes(body, bytes_max).await.map_err(|error| {
            if error.into_inner().is::<LengthLimitError>() {
                return ApiError::body_too_large(self.body_bytes_max);
            }
            ApiError::unreadable_body()
        })
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BODY_UNIT_BYTES)).unwrap_or(u32::MAX)
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
