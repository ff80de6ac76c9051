//! What every request and every response carries: a name, so that its client and the logs can speak
//! of the same one, and what OpenAI's clients read.

use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::openai::ApiError;

/// Names a request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Milliseconds until the response's head was there.
pub const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
/// The version of OpenAI's API that is spoken.
pub const OPENAI_VERSION: HeaderName = HeaderName::from_static("openai-version");

/// The only version that there has been.
const VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");

/// A client's own id is kept up to this length.
const CLIENT_ID_BYTES_MAX: usize = 128;

/// A longer path with its query is refused with 414.
const URL_BYTES_MAX: usize = 8 << 10;

/// Headers of a request, and their names and values in bytes; more are refused with 431. A connection
/// reads somewhat more, so that the refusal can say why.
const HEADERS_MAX: usize = 96;
const HEADER_BYTES_MAX: usize = 32 << 10;

/// The request's name, for handlers.
#[derive(Clone)]
pub struct RequestId(pub String);

/// Echoes the client's `x-request-id` or makes one, and says how long the response's head took.
pub async fn layer(mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = client_id(request.headers()).unwrap_or_else(|| random_id("req_"));
    let mut response = match check_size(request.uri(), request.headers()) {
        Ok(()) => {
            request.extensions_mut().insert(RequestId(id.clone()));
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    mark(response.headers_mut(), &id, began);
    response
}

/// Adds what every response has.
pub fn mark(headers: &mut HeaderMap, id: &str, began: Instant) {
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(X_REQUEST_ID, id);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(began.elapsed().as_millis() as u64));
    headers.insert(OPENAI_VERSION, VERSION);
}

/// A client's own name for its request, if it is one that logs can show.
fn client_id(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let is_good = (1..=CLIENT_ID_BYTES_MAX).contains(&given.len())
        && given.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then(|| given.to_string())
}

fn check_size(url: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    if url.path_and_query().is_some_and(|path| path.as_str().len() > URL_BYTES_MAX) {
        return Err(ApiError::url_too_long(URL_BYTES_MAX));
    }
    if headers.len() > HEADERS_MAX {
        return Err(ApiError::headers_too_large(&format!("{HEADERS_MAX} headers")));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADER_BYTES_MAX {
        return Err(ApiError::headers_too_large(&format!("{HEADER_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// A prefix and 128 random bits.
pub fn random_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_ids_that_logs_can_show() {
        for (given, kept) in [
            ("abc-1", true),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
            ("", false),
            ("a b", false),
            ("a\tb", false),
            ("ä", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(given.as_bytes()).unwrap());
            let expected = kept.then(|| given.to_string());
            assert_eq!(client_id(&headers), expected, "{given}");
        }
        assert_eq!(client_id(&HeaderMap::new()), None);
    }

    #[test]
    fn heads_have_a_size() {
        fn check(headers: usize, value_bytes: usize, limit: Option<&str>) {
            let mut map = HeaderMap::new();
            for number in 0..headers {
                let name: HeaderName = format!("x-{number:04}").parse().unwrap();
                map.insert(name, HeaderValue::from_str(&"v".repeat(value_bytes)).unwrap());
            }
            let refused = check_size(&Uri::from_static("/"), &map).err().map(|error| error.message);
            let expected = limit.map(|limit| {
                format!("The headers of your request are larger than the limit of {limit}.")
            });
            assert_eq!(refused, expected, "{headers} of {value_bytes}");
        }
        let long: Uri = format!("/{}", "x".repeat(8 << 10)).parse().unwrap();
        let refused = check_size(&long, &HeaderMap::new()).unwrap_err();
        assert_eq!(refused.status, 414);
        check(96, 300, None);
        check(97, 1, Some("96 headers"));
        check(1, (32 << 10) - 6, None);
        check(1, (32 << 10) - 5, Some("32768 bytes"));
    }
}
