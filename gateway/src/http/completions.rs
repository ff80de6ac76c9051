//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::Shared;
use super::body::read_json;
use super::generate::{Endpoint, Tokenized, encode, find_model, respond};
use super::identify::RequestId;
use crate::models::Model;
use crate::openai::{ApiError, CompletionRequest, Prompt};

/// Continues a text, or token ids.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let json = read_json(&headers, body, shared.config.body_bytes_max).await?;
    let CompletionRequest { parameters, prompt } = CompletionRequest::parse(&json)?;
    let model = find_model(&shared, &parameters.model)?;
    let prompt = match prompt {
        Prompt::Text(text) => encode(&model, text, true).await?,
        Prompt::Tokens(tokens) => check_tokens(&model, tokens)?,
    };
    let tokenized = Tokenized { endpoint: Endpoint::Completion, model, parameters, prompt };
    respond(&shared, request_id, tokenized).await
}

fn check_tokens(model: &Model, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    let wrong = tokens.iter().position(|token| *token as usize >= model.vocabulary_size);
    match wrong {
        Some(index) => Err(ApiError::above_maximum(
            &format!("prompt[{index}]"),
            "integer",
            model.vocabulary_size - 1,
            tokens[index],
        )),
        None => Ok(tokens),
    }
}
