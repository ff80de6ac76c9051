//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::Shared;
use super::asked::{Asked, Endpoint, PromptTokens};
use super::generate::{encode, find_model, respond};
use crate::models::Model;
use crate::openai::{ApiError, ChatRequest};
use crate::text::TemplateError;

/// Answers a conversation.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, chat) = shared.admission.admit(request, ChatRequest::parse).await?;
    let ChatRequest { parameters, messages } = chat;
    let model = find_model(&shared, &parameters.model)?;
    let prepare = move |model: &Model| {
        // The template writes the special tokens itself.
        encode(model, "messages", &render(model, &messages)?, false)
    };
    let (place, tokens) = admitted.tokens(&model, prepare).await?;
    let asked = Asked {
        endpoint: Endpoint::Chat,
        model,
        parameters,
        prompts: vec![PromptTokens { tokens, text: None }],
        grammar: String::new(),
        speech: None,
    };
    respond(&shared, place, asked).await
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
