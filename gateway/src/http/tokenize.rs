//! `POST /tokenize` and `/detokenize`: what the model makes of a text, and back.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::Shared;
use super::generate::{encode, find_model};
use super::listing::json;
use crate::models::Model;
use crate::openai::{ApiError, DetokenizeRequest, Text, TokenizeRequest, detokenized, tokenized};

/// Text, or messages, to tokens.
pub async fn tokenize(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, request) = shared.admission.admit(request, TokenizeRequest::parse).await?;
    let model = named_or_only(&shared, request.model.as_deref())?;
    let (_place, answer) = admitted.tokens(&model, |model| answer(model, request)).await?;
    Ok(json(answer))
}

fn answer(model: &Model, request: TokenizeRequest) -> Result<String, ApiError> {
    let special = request.add_special_tokens;
    let tokens = match request.text {
        Text::Prompt(text) => encode(model, "prompt", &text, special)?,
        Text::Messages { messages, tools, variables } => {
            let template =
                model.template.as_ref().ok_or_else(|| ApiError::no_chat_template(&model.name))?;
            let text = template.render_with(&messages, tools.as_deref(), &variables)?;
            encode(model, "messages", &text, special)?
        }
    };
    let spell = |token: &u32| model.tokenizer.spelling(*token).unwrap_or_default();
    let spellings = request.return_token_strs.then(|| tokens.iter().map(spell).collect());
    Ok(tokenized(model.context_tokens, &tokens, spellings))
}

/// Tokens to text.
pub async fn detokenize(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, request) = shared.admission.admit(request, DetokenizeRequest::parse).await?;
    let DetokenizeRequest { model, tokens } = request;
    let model = named_or_only(&shared, model.as_deref())?;
    let (_place, text) = admitted.tokens(&model, move |model| decode(model, &tokens)).await?;
    Ok(json(detokenized(&text)))
}

fn decode(model: &Model, tokens: &[u32]) -> Result<String, ApiError> {
    if tokens.len() > model.context_tokens {
        return Err(ApiError::array_too_long("tokens", model.context_tokens, tokens.len()));
    }
    let size = model.vocabulary_size;
    if let Some(index) = tokens.iter().position(|token| *token as usize >= size) {
        let param = format!("tokens[{index}]");
        return Err(ApiError::above_maximum(&param, "integer", size - 1, tokens[index]));
    }
    model.tokenizer.decode(tokens).map_err(|error| {
        tracing::error!(%error, "cannot turn tokens into text");
        ApiError::internal()
    })
}

/// The model of this name; without one, the model that is served alone.
fn named_or_only(shared: &Shared, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
    match (name, shared.models.all().as_slice()) {
        (Some(name), _) => find_model(shared, name),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(ApiError::missing("model")),
    }
}
