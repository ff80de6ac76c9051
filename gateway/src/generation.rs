//! An answer as it comes: tokens become text, stop strings end it.

use std::collections::VecDeque;
use std::sync::Arc;

use protocol::v1::{self, FinishReason, RequestUpdate};

use crate::migration::TokenStream;
use crate::models::Model;
use crate::openai::{ApiError, TokenText, Usage};
use crate::text::{Detokenizer, StopMatcher};

/// What an answer gained.
#[derive(Debug, Default)]
pub struct Piece {
    /// Text that is certain: whole characters, no part of a stop string.
    pub text: String,
    /// One entry per token of that text, where the request asked for logprobs.
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
    stream: Option<TokenStream>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    usage: Usage,
    /// Logprobs of tokens whose text is held back, because a stop string may begin there.
    held: VecDeque<HeldLogprobs>,
    decoded_bytes: usize,
    decoded_characters: usize,
    emitted_bytes: usize,
}

/// A token and where its text lies in the answer.
struct HeldLogprobs {
    start: usize,
    end: usize,
    token: TokenText,
}

impl Generation {
    /// The answer that `stream` brings.
    pub fn new(
        model: Arc<Model>,
        stream: TokenStream,
        stop: Vec<String>,
        prompt_tokens: u32,
    ) -> Self {
        Self {
            model,
            stream: Some(stream),
            detokenizer: Detokenizer::default(),
            stop: StopMatcher::new(stop),
            usage: Usage { prompt_tokens, ..Default::default() },
            held: VecDeque::new(),
            decoded_bytes: 0,
            decoded_characters: 0,
            emitted_bytes: 0,
        }
    }

    /// What the answer gains next; nothing after its end. Errors: no worker can go on with it.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let piece = stream.next().await.map(|update| self.take(update));
        if !matches!(piece, Ok(Piece { finish: None, .. })) {
            // Where a stop string ended it, this cancels what the worker still does.
            self.stream = None;
        }
        piece.map(Some)
    }

    fn take(&mut self, update: RequestUpdate) -> Piece {
        let finish = update.finish();
        if let Some(cached_tokens) = update.cached_tokens {
            self.usage.cached_tokens = cached_tokens;
        }
        let mut piece = Piece::default();
        let mut stopped = false;
        let tokens = update.tokens.len();
        for (index, token) in update.tokens.into_iter().enumerate() {
            self.usage.completion_tokens += 1;
            // The token that stops is counted and not shown.
            if finish == FinishReason::Stop && index + 1 == tokens {
                break;
            }
            stopped = self.append(&token, &mut piece.text);
            if stopped {
                break;
            }
        }
        piece.finish = match finish {
            _ if stopped => Some("stop"),
            FinishReason::Stop => Some("stop"),
            FinishReason::Length => Some("length"),
            FinishReason::Unspecified => None,
        };
        if piece.finish.is_some() && !stopped {
            piece.text.push_str(&self.stop.finish());
        }
        self.emitted_bytes += piece.text.len();
        piece.logprobs = self.release_logprobs(piece.finish.is_some(), stopped);
        piece.usage = self.usage;
        piece
    }

    /// Adds what of a token's text is certain to `text`. True: a stop string is complete.
    fn append(&mut self, token: &v1::Token, text: &mut String) -> bool {
        let tokenizer = &self.model.tokenizer;
        let decoded = self.detokenizer.push(tokenizer, token.id);
        let (start, offset_characters) = (self.decoded_bytes, self.decoded_characters);
        self.decoded_bytes += decoded.len();
        self.decoded_characters += decoded.chars().count();
        if let Some(logprob) = token.logprob.filter(|_| !tokenizer.is_special(token.id)) {
            let token = self.with_text(token, logprob, offset_characters);
            self.held.push_back(HeldLogprobs { start, end: self.decoded_bytes, token });
        }
        let matched = self.stop.push(&decoded);
        text.push_str(&matched.emit);
        matched.stopped
    }

    fn with_text(&self, token: &v1::Token, logprob: f32, offset_characters: usize) -> TokenText {
        let tokenizer = &self.model.tokenizer;
        let bytes = |id: u32| tokenizer.token_bytes(id).to_vec();
        let text = |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        let alternative = |top: &v1::TokenLogprob| (text(top.id), bytes(top.id), top.logprob);
        TokenText {
            text: text(token.id),
            bytes: bytes(token.id),
            offset_characters,
            logprob,
            top: token.top_logprobs.iter().map(alternative).collect(),
        }
    }

    /// Logprobs go out with their token's text: those of a stop string never do.
    fn release_logprobs(&mut self, ended: bool, stopped: bool) -> Vec<TokenText> {
        let emitted = self.emitted_bytes;
        let is_out = |held: &HeldLogprobs| match (stopped, ended) {
            (true, _) => held.start < emitted,
            (false, true) => true,
            (false, false) => held.end <= emitted,
        };
        let count = self.held.iter().take_while(|held| is_out(held)).count();
        self.held.drain(..count).map(|held| held.token).collect()
    }
}
