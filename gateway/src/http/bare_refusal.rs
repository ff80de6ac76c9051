//! What is no HTTP is refused by the HTTP library itself, with a status and nothing else. Clients
//! expect OpenAI's envelope there too.

use std::fmt::Write;
use std::time::Instant;

use axum::response::IntoResponse;
use bytes::Bytes;

use super::identify::{X_REQUEST_ID, mark, random_id};
use crate::openai::ApiError;

/// How the refusals that the library makes begin.
const BEGINNING: &[u8] = b"HTTP/1.1 4";

/// A response in place of `written`, if that is a refusal of the library's own. It is one where a
/// response has no body and no name, which [`mark`] gives to all others. Nor can it be a part of
/// another one's body: JSON has no line ends within strings.
pub fn better(written: &[u8]) -> Option<Bytes> {
    if !written.starts_with(BEGINNING) {
        return None;
    }
    let head = std::str::from_utf8(written).ok()?;
    let is_bare = head.ends_with("\r\n\r\n")
        && head.contains("\r\ncontent-length: 0\r\n")
        && !head.contains(X_REQUEST_ID.as_str());
    let status = head.get(9..12).filter(|_| is_bare)?;
    Some(response(match status {
        "431" => ApiError::headers_too_large("64 KiB or 100 headers"),
        _ => ApiError::malformed_request(),
    }))
}

/// A whole response, after which the connection ends.
fn response(error: ApiError) -> Bytes {
    let body = error.envelope().to_string();
    let mut response = error.into_response();
    mark(response.headers_mut(), &random_id("req_"), Instant::now());
    let (status, length) = (response.status(), body.len());
    let mut text =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in response.headers() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    text.push_str("\r\n");
    text.push_str(&body);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_refusals_are_replaced() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                    content-length: 0\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n";
        let text = better(bare.as_bytes()).unwrap();
        let text = std::str::from_utf8(&text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())));
        for header in ["x-request-id: req_", "content-type: application/json", "x-should-retry"] {
            assert!(head.contains(&format!("\r\n{header}")), "{head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "headers_too_large");

        let named = bare.replace("date: ", "x-request-id: ");
        let with_body = bare.replace("content-length: 0", "content-length: 5");
        let successful = bare.replace("431", "200");
        for other in [named.as_str(), &with_body, &successful, &bare[..40], "", "data: x\n\n"] {
            assert!(better(other.as_bytes()).is_none(), "{other}");
        }
    }
}
