//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::Shared;
use super::asked::{Asked, Endpoint, PromptTokens};
use super::generate::{encode, find_model, respond};
use crate::models::Model;
use crate::openai::{ApiError, CompletionRequest, Prompt, PromptContent};
use crate::tools::text_grammar;

/// Continues a text, or token ids.
pub async fn handle(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (admitted, completion) = shared.admission.admit(request, CompletionRequest::parse).await?;
    let CompletionRequest { parameters, prompts, constraint } = completion;
    let model = find_model(&shared, &parameters.model)?;
    let prepare = move |model: &Model| {
        let prompts = prompts.into_iter().map(|prompt| tokens(model, prompt));
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        let grammar = constraint.as_ref().map(text_grammar).transpose()?;
        let param = constraint.map_or(String::new(), |constraint| constraint.param);
        Ok((prompts, grammar, param))
    };
    let (place, (prompts, grammar, param)) = admitted.tokens(&model, prepare).await?;
    let asked = Asked {
        endpoint: Endpoint::Completion,
        prompts,
        grammar: shared.grammars.checked(&model, grammar, &param).await?,
        grammar_param: param.into(),
        speech: None,
        model,
        parameters,
    };
    respond(&shared, place, asked).await
}

fn tokens(model: &Model, Prompt { path, content }: Prompt) -> Result<PromptTokens, ApiError> {
    match content {
        PromptContent::Text(text) => {
            let tokens = encode(model, &path, &text, true)?;
            Ok(PromptTokens { tokens: tokens.into(), text: Some(text) })
        }
        PromptContent::Tokens(tokens) => {
            check_tokens(model, &path, &tokens)?;
            Ok(PromptTokens { tokens: tokens.into(), text: None })
        }
    }
}

fn check_tokens(model: &Model, path: &str, tokens: &[u32]) -> Result<(), ApiError> {
    let wrong = tokens.iter().position(|token| *token as usize >= model.vocabulary_size);
    match wrong {
        Some(index) => Err(ApiError::above_maximum(
            &format!("{path}[{index}]"),
            "integer",
            model.vocabulary_size - 1,
            tokens[index],
        )),
        None => Ok(()),
    }
}
