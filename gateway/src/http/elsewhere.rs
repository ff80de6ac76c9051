//! What is asked of paths and methods that this server does not have.

use axum::body::Body;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::admit::discard;
use crate::openai::ApiError;

/// Paths that OpenAI has, by how they begin without `/v1`, and what they are for.
const NOT_DONE_HERE: &[(&str, &str)] = &[
    ("/assistants", "assistants"),
    ("/audio", "audio"),
    ("/batches", "batches"),
    ("/containers", "containers"),
    ("/conversations", "conversations"),
    ("/embeddings", "embeddings"),
    ("/evals", "evals"),
    ("/files", "files"),
    ("/fine_tuning", "fine-tuning"),
    ("/images", "images"),
    ("/messages", "Anthropic's messages"),
    ("/moderations", "moderations"),
    ("/organization", "organizations"),
    ("/realtime", "realtime sessions"),
    ("/responses", "responses"),
    ("/threads", "threads"),
    ("/uploads", "uploads"),
    ("/vector_stores", "vector stores"),
    ("/videos", "videos"),
    ("/chat/completions", "stored chat completions"),
];

/// No endpoint has this path.
pub async fn no_such_route(method: Method, uri: Uri, body: Body) -> ApiError {
    discard(body).await;
    let path = uri.path();
    match what_openai_does_at(path) {
        Some(what) => ApiError::not_done_here(method, path, what),
        None => ApiError::route_not_found(method, path),
    }
}

fn what_openai_does_at(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let begins = |prefix| {
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest: &str| rest.is_empty() || rest.starts_with('/'))
    };
    NOT_DONE_HERE.iter().find(|(prefix, _)| begins(*prefix)).map(|(_, what)| *what)
}

/// The path is one of ours, with other methods, which `Allow` will name.
pub async fn wrong_method(method: Method, uri: Uri, body: Body) -> Response {
    discard(body).await;
    match method {
        Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        _ => ApiError::method_not_allowed(method, uri.path()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_openai_does() {
        for (path, what) in [
            ("/v1/embeddings", Some("embeddings")),
            ("/embeddings", Some("embeddings")),
            ("/v1/audio/speech", Some("audio")),
            ("/v1/chat/completions/chatcmpl-1", Some("stored chat completions")),
            ("/v1/embedding", None),
            ("/v1/filesystem", None),
            ("/", None),
        ] {
            assert_eq!(what_openai_does_at(path), what, "{path}");
        }
    }
}
