//! What both generating endpoints do once they have tokens: check the room, dispatch, answer whole
//! or as a stream.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use super::Shared;
use super::admit::Place;
use super::asked::Asked;
use super::chunks::{Chunks, shown};
use super::speaker::Speaker;
use super::{sse, whole};
use crate::choices::{Choices, News};
use crate::generation::Piece;
use crate::models::Model;
use crate::openai::{ApiError, Usage};

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
    if asked.wants_nothing() {
        return Ok(asked.nothing());
    }
    let prompts = asked.to_dispatch(&request_id, explain_route);
    let per_prompt = asked.parameters.best_of as usize;
    let dispatcher = shared.dispatcher.clone();
    let choices = Choices::begin(dispatcher, asked.transcription(), prompts, per_prompt).await?;
    // A worker's name may hold what a header cannot.
    let explanation = HeaderValue::from_str(&choices.explanation).ok();
    let head = asked.head(&choices.numerics_id);
    let mut response = match asked.parameters.stream {
        Some(options) => {
            let ends = sse::Ends { _room: room, cut: shared.cut.clone() };
            stream_answer(Chunks::new(&asked, &head, options), choices, ends).await?
        }
        None => whole::answer(&asked, &head, choices).await?,
    };
    if let Some(explanation) = explanation.filter(|_| explain_route) {
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

impl Asked {
    /// A choice that has said nothing.
    pub fn speaker(&self) -> Speaker {
        Speaker::new(self.speech.as_ref().map(|speech| (speech.new_parser)()), self.is_legacy())
    }

    /// Usage as it is shown.
    pub fn shown_usage(&self, usage: Usage) -> Usage {
        shown(usage, self.parameters.max_tokens == Some(0))
    }

    /// The answer of no tokens, which `max_tokens: 0` asks for.
    fn nothing(&self) -> Response {
        let head = self.head("none");
        let Some(options) = self.parameters.stream else { return whole::nothing(self, &head) };
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.tokens.len() as u32).sum();
        let usage = Usage { prompt_tokens, ..Default::default() };
        let piece = || Piece { finish: Some("length"), ..Default::default() };
        let choices = self.prompts.len() * self.parameters.n as usize;
        let choices = (0..choices).map(|choice| News { choice, piece: piece() }).collect();
        sse::nothing(Chunks::new(self, &head, options), choices, usage)
    }
}
