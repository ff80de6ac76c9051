//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::Shared;
use super::body::read_json;
use super::generate::{Endpoint, Tokenized, encode, find_model, respond};
use super::identify::RequestId;
use crate::models::Model;
use crate::openai::{ApiError, ChatRequest};
use crate::text::TemplateError;

/// Answers a conversation.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let json = read_json(&headers, body, shared.config.body_bytes_max).await?;
    let ChatRequest { parameters, messages } = ChatRequest::parse(&json)?;
    let model = find_model(&shared, &parameters.model)?;
    let prompt = render(&model, &messages)?;
    // The template writes the special tokens itself.
    let prompt = encode(&model, prompt, false).await?;
    let tokenized = Tokenized { endpoint: Endpoint::Chat, model, parameters, prompt };
    respond(&shared, request_id, tokenized).await
}

fn render(model: &Model, messages: &[Value]) -> Result<String, ApiError> {
    let template = model.template.as_ref().ok_or_else(|| {
        let message = format!(
            "The model `{}` has no chat template. Use /v1/completions instead.",
            model.name
        );
        ApiError::invalid_value("model", message)
    })?;
    template.render(messages, None).map_err(|error| {
        if !matches!(error, TemplateError::Raised(_)) {
            tracing::warn!(model = model.name, ?error, "the chat template failed");
        }
        error.into()
    })
}
