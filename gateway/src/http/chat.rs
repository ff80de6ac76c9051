//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::Shared;
use super::generate::{Endpoint, Tokenized, encode, find_model, respond};
use crate::models::Model;
use crate::openai::{ApiError, ChatRequest};
use crate::text::TemplateError;

/// Answers a conversation.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, chat) = shared.admission.admit(request, ChatRequest::parse).await?;
    let ChatRequest { parameters, messages, .. } = chat;
    let model = find_model(&shared, &parameters.model)?;
    let prepare = move |model: &Model| {
        // The template writes the special tokens itself.
        encode(model, "messages", &render(model, &messages)?, false)
    };
    let (place, prompt) = admitted.tokens(&model, prepare).await?;
    let tokenized = Tokenized { endpoint: Endpoint::Chat, model, parameters, prompt };
    respond(&shared, place, tokenized).await
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
