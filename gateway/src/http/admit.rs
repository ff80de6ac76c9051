//! Admission: a place among the requests under way, then the request's body, both before any work.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::identify::RequestId;
use crate::GatewayConfig;
use crate::models::Model;
use crate::openai::ApiError;

/// When to come back if too many requests are under way.
const FULL_RETRY_S: u64 = 1;

/// A body comes at least so fast on average, after a first silence.
const BODY_BYTES_PER_S_MIN: usize = 8 << 10;

/// A request with this header set to 1 is answered with `x-stator-route`.
const X_STATOR_DEBUG: &str = "x-stator-debug";

/// What is read of a body that nobody wants.
const DISCARDED_BYTES_MAX: usize = 64 << 10;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(1);

/// Larger bodies are parsed, rendered and tokenized where they do not hold up other requests.
const INLINE_BODY_BYTES_MAX: usize = 16 * 1024;

/// The places there are.
pub struct Admission {
    /// One permit per request under way.
    requests: Arc<Semaphore>,
    /// One permit per byte of body that has come and is not tokens yet: all requests together may
    /// hold as much as the largest one may, because text takes far more room while it is worked on.
    bytes: Arc<Semaphore>,
    body_bytes_max: usize,
    /// A body of which nothing comes for so long is given up.
    body_silence_max: Duration,
}

/// A request that has its place, until this is dropped.
pub struct Admitted {
    /// Its name.
    pub request_id: String,
    /// Its place.
    pub room: OwnedSemaphorePermit,
    explain_route: bool,
    body: BodyRoom,
}

/// The room that a body takes.
struct BodyRoom {
    bytes: usize,
    _permits: Option<OwnedSemaphorePermit>,
}

impl Admission {
    /// Places among `requests`.
    pub fn new(requests: Arc<Semaphore>, config: &GatewayConfig) -> Self {
        Self {
            requests,
            bytes: Arc::new(Semaphore::new(config.body_bytes_max)),
            body_bytes_max: config.body_bytes_max,
            body_silence_max: config.body_silence_max,
        }
    }

    /// Takes a place, reads the body and parses it. Errors: no place is free, or the body is not
    /// acceptable.
    pub async fn admit<T: Send + 'static>(
        &self,
        request: Request,
        parse: fn(&Value) -> Result<T, ApiError>,
    ) -> Result<(Admitted, T), ApiError> {
        let (parts, body) = request.into_parts();
        let room = match self.place(&parts.headers) {
            Ok(room) => room,
            Err(error) => {
                discard(body).await;
                return Err(error);
            }
        };
        let (bytes, body) = self.read(body).await?;
        let (body, parsed) = in_place_or_aside(body, move || {
            let json = serde_json::from_slice(&bytes).map_err(|e| ApiError::malformed_json(&e))?;
            parse(&json)
        })
        .await?;
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
        let request_id = request_id.unwrap_or_default();
        let explain_route = parts.headers.get(X_STATOR_DEBUG).is_some_and(|value| value == "1");
        Ok((Admitted { request_id, room, explain_route, body }, parsed))
    }

    /// A place for a request with these headers.
    fn place(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, ApiError> {
        let room = self.requests.clone().try_acquire_owned();
        let room = room.map_err(|_| ApiError::overloaded(FULL_RETRY_S))?;
        check_headers(headers)?;
        self.check_declared_bytes(headers)?;
        Ok(room)
    }

    fn check_declared_bytes(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        match declared.and_then(|text| text.parse::<usize>().ok()) {
            Some(bytes) if bytes > self.body_bytes_max => {
                Err(ApiError::body_too_large(self.body_bytes_max))
            }
            _ => Ok(()),
        }
    }

    /// When the next part of a body must be there.
    fn body_deadline(&self, began: Instant, bytes: usize) -> Instant {
        let (silence, earned_s) = (self.body_silence_max, bytes / BODY_BYTES_PER_S_MIN);
        let average = began + silence + Duration::from_secs(earned_s as u64);
        average.min(Instant::now() + silence)
    }

    /// Reads a body, taking room for what has come: what is only announced takes none.
    async fn read(&self, mut body: Body) -> Result<(Vec<u8>, BodyRoom), ApiError> {
        let (mut bytes, mut permits) = (Vec::new(), None::<OwnedSemaphorePermit>);
        let began = Instant::now();
        loop {
            let deadline = self.body_deadline(began, bytes.len());
            let frame = tokio::time::timeout_at(deadline, body.frame()).await;
            let frame = match frame.map_err(|_| ApiError::body_timed_out())? {
                None => break,
                Some(frame) => frame.map_err(|_| ApiError::unreadable_body())?,
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.body_bytes_max {
                return Err(ApiError::body_too_large(self.body_bytes_max));
            }
            let more = self.bytes.clone().try_acquire_many_owned(data.len() as u32);
            let more = more.map_err(|_| ApiError::overloaded(FULL_RETRY_S))?;
            match &mut permits {
                Some(permits) => permits.merge(more),
                None => permits = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        let room = BodyRoom { bytes: bytes.len(), _permits: permits };
        Ok((bytes, room))
    }
}

impl Admitted {
    /// Turns the request into tokens, or whatever `prepare` makes of it, after which its body takes no
    /// more room. Its place stays taken.
    pub async fn tokens<T: Send + 'static>(
        self,
        model: &Arc<Model>,
        prepare: impl FnOnce(&Model) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(Place, T), ApiError> {
        let Self { request_id, room, explain_route, body } = self;
        let model = model.clone();
        let (_body, tokens) = in_place_or_aside(body, move || prepare(&model)).await?;
        Ok((Place { request_id, room, explain_route }, tokens))
    }
}

/// A request in tokens: its name, and its place until this is dropped.
pub struct Place {
    /// Its name.
    pub request_id: String,
    /// Its place.
    pub room: OwnedSemaphorePermit,
    /// Whether the answer is to say why it comes from where it comes.
    pub explain_route: bool,
}

/// Runs `work` at once where the body is small, else on a thread where it may take its time. The
/// body's room stays taken until the work is done, also when nobody waits for it any more.
async fn in_place_or_aside<T: Send + 'static>(
    body: BodyRoom,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<(BodyRoom, T), ApiError> {
    if body.bytes <= INLINE_BODY_BYTES_MAX {
        return work().map(|done| (body, done));
    }
    let aside = tokio::task::spawn_blocking(move || work().map(|done| (body, done)));
    aside.await.map_err(|_| ApiError::internal())?
}

/// Reads a body that nobody wants, if it is small and on its way: with bytes unread, its connection
/// could carry no further request.
pub async fn discard(mut body: Body) {
    let mut left_bytes = DISCARDED_BYTES_MAX;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left_bytes = left_bytes.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
            if left_bytes == 0 {
                return;
            }
        }
    };
    // Whoever takes longer, or sends more, connects anew.
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, reading).await;
}

/// JSON, with whatever parameters; or nothing said, as some clients do. Not compressed.
fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|value| *value != "identity") {
        return Err(ApiError::unsupported_content_encoding(encoding.to_str().unwrap_or_default()));
    }
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::unsupported_content_type(Some(text)))
}
