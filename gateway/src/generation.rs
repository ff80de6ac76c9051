//! An answer as it comes: tokens become text, stop strings end it.

use std::sync::Arc;

use protocol::v1::{self, FinishReason, RequestUpdate, failure};

use crate::models::Model;
use crate::openai::{ApiError, TokenText, Usage};
use crate::sessions::RequestStream;
use crate::text::{Detokenizer, StopMatcher};

/// When to come back after a worker was lost or overloaded.
const RETRY_S: u64 = 1;

/// What an answer gained.
#[derive(Debug, Default)]
pub struct Piece {
    /// Text that is certain: whole characters, no part of a stop string.
    pub text: String,
    /// One entry per token that has text, where the request asked for logprobs.
    pub logprobs: Vec<TokenText>,
    /// Counts so far.
    pub usage: Usage,
    /// Why the answer ended with this piece: `stop` or `length`.
    pub finish: Option<&'static str>,
}

/// An answer under way. Dropping it cancels the request.
pub struct Generation {
    model: Arc<Model>,
    /// Absent once the answer has ended.
    stream: Option<RequestStream>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    usage: Usage,
}

impl Generation {
    /// The answer that `stream` brings.
    pub fn new(
        model: Arc<Model>,
        stream: RequestStream,
        stop: Vec<String>,
        prompt_tokens: u32,
    ) -> Self {
        Self {
            model,
            stream: Some(stream),
            detokenizer: Detokenizer::default(),
            stop: StopMatcher::new(stop),
            usage: Usage { prompt_tokens, ..Default::default() },
        }
    }

    /// What the answer gains next; nothing after its end. Errors: the worker failed.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let update = stream.next().await;
        let piece = update.ok_or_else(lost).and_then(|update| self.take(update));
        if !matches!(piece, Ok(Piece { finish: None, .. })) {
            // Where a stop string ended it, this cancels what the worker still does.
            self.stream = None;
        }
        piece.map(Some)
    }

    fn take(&mut self, update: RequestUpdate) -> Result<Piece, ApiError> {
        if let Some(failure) = update.failure {
            return Err(error_of(&failure));
        }
        let finish = update.finish();
        if let Some(cached_tokens) = update.cached_tokens {
            self.usage.cached_tokens = cached_tokens;
        }
        let mut piece = Piece::default();
        let tokens = update.tokens.len();
        for (index, token) in update.tokens.into_iter().enumerate() {
            self.usage.completion_tokens += 1;
            // The token that stops is counted and not shown.
            if finish == FinishReason::Stop && index + 1 == tokens {
                break;
            }
            if self.append(&token, &mut piece) {
                piece.finish = Some("stop");
                break;
            }
        }
        if piece.finish.is_none() && finish != FinishReason::Unspecified {
            piece.text.push_str(&self.stop.finish());
            piece.finish = Some(if finish == FinishReason::Stop { "stop" } else { "length" });
        }
        piece.usage = self.usage;
        Ok(piece)
    }

    /// Adds a token's text. True: a stop string is complete.
    fn append(&mut self, token: &v1::Token, piece: &mut Piece) -> bool {
        let tokenizer = &self.model.tokenizer;
        let matched = self.stop.push(&self.detokenizer.push(tokenizer, token.id));
        piece.text.push_str(&matched.emit);
        if let Some(logprob) = token.logprob {
            let bytes = |id: u32| tokenizer.token_bytes(id).to_vec();
            let text = |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
            let top = token.top_logprobs.iter();
            piece.logprobs.push(TokenText {
                text: text(token.id),
                bytes: bytes(token.id),
                logprob,
                top: top.map(|top| (text(top.id), bytes(top.id), top.logprob)).collect(),
            });
        }
        matched.stopped
    }
}

fn lost() -> ApiError {
    tracing::warn!("the worker was lost during a request");
    ApiError::overloaded(RETRY_S)
}

fn error_of(failure: &v1::Failure) -> ApiError {
    match failure.kind() {
        failure::Kind::Invalid => ApiError::invalid_value("prompt", failure.message.clone()),
        failure::Kind::Overloaded => ApiError::overloaded(RETRY_S),
        failure::Kind::Internal | failure::Kind::Unspecified => {
            tracing::error!(failure.message, "a worker failed");
            ApiError::internal()
        }
    }
}
