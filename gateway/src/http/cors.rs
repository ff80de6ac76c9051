//! Lets pages of other origins ask, where the operator names them.

use std::str::FromStr;
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::generate::X_STATOR_ROUTE;
use super::identify::{OPENAI_VERSION, PROCESSING_MS, X_REQUEST_ID};

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_AGE_MAX: Duration = Duration::from_secs(600);

const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An origin whose pages may ask: `https://host` or `http://host:port`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

/// Why a text is no origin. `Display` is a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no origin; give https://HOST, http://HOST:PORT or *, without a path")]
pub struct OriginError(String);

impl FromStr for Origin {
    type Err = OriginError;

    /// Only what a browser would send in `Origin`, since it is compared by bytes.
    fn from_str(text: &str) -> Result<Self, OriginError> {
        let refused = || OriginError(text.to_owned());
        if text != "*" {
            let uri: Uri = text.parse().map_err(|_| refused())?;
            let authority = uri.authority().ok_or_else(refused)?.as_str();
            let is_plain = authority.bytes().all(|b| b != b'@' && !b.is_ascii_uppercase());
            let scheme = uri.scheme_str().unwrap_or_default();
            let has_nothing_else = text == format!("{scheme}://{authority}");
            if !is_plain || !has_nothing_else {
                return Err(refused());
            }
        }
        Ok(Self(HeaderValue::from_str(text).map_err(|_| refused())?))
    }
}

/// Answers preflights and marks responses for pages of these origins; `None` where there are none.
pub fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    let names: Vec<HeaderValue> = origins.iter().map(|origin| origin.0.clone()).collect();
    let allowed = match names.is_empty() {
        true => return None,
        false if names.iter().any(|name| name == "*") => AllowOrigin::any(),
        false => AllowOrigin::list(names),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        // Clients send many of their own, and `*` would leave out `authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            X_REQUEST_ID,
            PROCESSING_MS,
            OPENAI_VERSION,
            RETRY_AFTER,
            X_SHOULD_RETRY,
            X_STATOR_ROUTE,
        ])
        .max_age(PREFLIGHT_AGE_MAX);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for good in ["*", "https://a.example", "http://localhost:3000", "http://[::1]:80"] {
            assert_eq!(good.parse(), Ok(Origin(HeaderValue::from_static(good))), "{good}");
        }
        for bad in [
            "",
            "a.example",
            "https://a.example/",
            "https://a.example/path",
            "https://A.example",
            "https://user@a.example",
            "https://",
            "null",
            "https://a.example https://b.example",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
