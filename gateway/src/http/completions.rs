//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::Shared;
use super::generate::{Endpoint, Tokenized, encode, find_model, respond};
use crate::models::Model;
use crate::openai::{ApiError, CompletionRequest, Prompt};

/// Continues a text, or token ids.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, completion) = shared.admission.admit(request, CompletionRequest::parse).await?;
    let CompletionRequest { parameters, prompt, .. } = completion;
    let model = find_model(&shared, &parameters.model)?;
    let prepare = move |model: &Model| match prompt {
        Prompt::Text(text) => encode(model, "prompt", &text, true),
        Prompt::Tokens(tokens) => check_tokens(model, tokens),
    };
    let (place, prompt) = admitted.tokens(&model, prepare).await?;
    let tokenized = Tokenized { endpoint: Endpoint::Completion, model, parameters, prompt };
    respond(&shared, place, tokenized).await
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
