//! What both generating endpoints do once they have tokens: check the room, dispatch, answer whole
//! or as a stream.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::Shared;
use super::admit::Place;
use super::asked::Asked;
use super::chunks::Chunks;
use super::{sse, whole};
use crate::choices::{Choices, News};
use crate::generation::Piece;
use crate::models::Model;
use crate::openai::ApiError;

/// Which workers answer and why, for requests that ask.
pub const X_STATOR_ROUTE: HeaderName = HeaderName::from_static("x-stator-route");

/// Unicode normalization leaves at least this part of a text's bytes.
const NORMALIZATION_SHRINKS_BY: usize = 4;

/// The model that a request names.
pub fn find_model(shared: &Shared, name: &str) -> Result<Arc<Model>, ApiError> {
    shared.models.get(name).ok_or_else(|| ApiError::model_not_found(name))
}

/// Text to tokens. Texts that cannot fit the context are not looked at.
pub fn encode(
    model: &Model,
    param: &str,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<u32>, ApiError> {
    let fitting = model.context_tokens.saturating_mul(model.tokenizer.token_bytes_max());
    if text.len() > fitting.saturating_mul(NORMALIZATION_SHRINKS_BY) {
        return Err(ApiError::text_too_long(param, model.context_tokens, text.len()));
    }
    model.tokenizer.encode(text, add_special_tokens).map_err(|error| {
        tracing::error!(%error, "cannot tokenize");
        ApiError::internal()
    })
}

/// Generates and answers.
pub async fn respond(shared: &Shared, place: Place, asked: Asked) -> Result<Response, ApiError> {
    tokio::select! {
        biased;
        answer = answer(shared, place, asked) => answer,
        () = shared.cut.cancelled() => Err(ApiError::shutting_down()),
    }
}

async fn answer(shared: &Shared, place: Place, asked: Asked) -> Result<Response, ApiError> {
    let Place { request_id, room, explain_route } = place;
    asked.check()?;
    let prompts = asked.to_dispatch(&request_id, explain_route);
    let per_prompt = asked.parameters.best_of as usize;
    let choices = match asked.wants_nothing() {
        true => Choices::without_tokens(&prompts, per_prompt),
        false => {
            let dispatcher = shared.dispatcher.clone();
            Choices::begin(dispatcher, asked.transcription(), prompts, per_prompt).await?
        }
    };
    // A worker's name may hold what a header cannot.
    let explanation = HeaderValue::from_str(&choices.explanation).ok();
    let explanation = explanation.filter(|value| !value.is_empty());
    let head = asked.head(&choices.numerics_id);
    let mut response = match asked.parameters.stream {
        Some(options) => {
            let ends = sse::Ends { _room: room, cut: shared.cut.clone() };
            stream_answer(Chunks::new(&asked, &head, options), choices, ends).await?
        }
        None => whole::answer(&asked, &head, choices).await?,
    };
    if let Some(explanation) = explanation {
        response.headers_mut().insert(X_STATOR_ROUTE, explanation);
    }
    Ok(response)
}

/// What goes wrong before the first token has a status of its own; later it is an event.
async fn stream_answer(
    chunks: Chunks,
    mut choices: Choices,
    ends: sse::Ends,
) -> Result<Response, ApiError> {
    let first = choices.next().await?;
    let first = first.unwrap_or(News { choice: 0, piece: Piece::default() });
    Ok(sse::response(chunks, first, choices, ends))
}
