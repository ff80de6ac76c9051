//! One choice as it comes: tokens become text, stop strings end it.

use std::collections::VecDeque;
use std::sync::Arc;

use protocol::v1::{self, FinishReason, RequestUpdate};

use crate::migration::TokenStream;
use crate::models::Model;
use crate::openai::{ApiError, TokenText};
use crate::text::{Detokenizer, StopMatcher};

/// What a choice gained.
#[derive(Debug, Default)]
pub struct Piece {
    /// Text that is certain: whole characters, no part of a stop string.
    pub text: String,
    /// One entry per token of that text, where the request asked for logprobs.
    pub logprobs: Vec<TokenText>,
    /// The prompt's tokens from the second on, where the request asked for them.
    pub prompt: Vec<TokenText>,
    /// Tokens generated, also those without text.
    pub tokens: u32,
    /// How many tokens of the prompt the prefix cache saved, with the first piece.
    pub cached_tokens: Option<u32>,
    /// Why the choice ended with this piece: `stop` or `length`.
    pub finish: Option<&'static str>,
}

/// How a choice's tokens become text.
#[derive(Clone)]
pub struct Transcription {
    /// Whose tokens they are.
    pub model: Arc<Model>,
    /// Strings that end the choice.
    pub stop: Vec<String>,
    /// Special tokens whose text is shown, because someone reads them.
    pub shown_specials: Arc<[u32]>,
    /// A piece has one token: what becomes of its text depends on no more than the tokens before.
    pub is_parsed: bool,
    /// Tokens come only with a report on the prompt: they are neither shown nor counted.
    pub is_hidden: bool,
}

/// A choice under way. Dropping it cancels its request.
pub struct Generation {
    transcription: Transcription,
    /// Absent once the choice has ended.
    stream: Option<TokenStream>,
    /// What came together and is taken one token at a time.
    split: VecDeque<RequestUpdate>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
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
    /// The choice that `stream` brings.
    pub fn new(transcription: Transcription, stream: TokenStream) -> Self {
        Self {
            stop: StopMatcher::new(transcription.stop.clone()),
            transcription,
            stream: Some(stream),
            split: VecDeque::new(),
            detokenizer: Detokenizer::default(),
            held: VecDeque::new(),
            decoded_bytes: 0,
            decoded_characters: 0,
            emitted_bytes: 0,
        }
    }

    /// What brings it; nothing after its end.
    pub fn stream(&self) -> Option<&TokenStream> {
        self.stream.as_ref()
    }

    /// What the choice gains next; nothing after its end. Errors: no worker can go on with it.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        if let Some(update) = self.split.pop_front() {
            return Ok(Some(self.take(update)));
        }
        let update = match stream.next().await {
            Ok(update) => update,
            Err(error) => {
                self.stream = None;
                return Err(error);
            }
        };
        let first = self.first_of(update);
        Ok(Some(self.take(first)))
    }

    /// What has come already, if anything.
    pub fn ready(&mut self) -> Option<Piece> {
        let stream = self.stream.as_mut()?;
        let update = match self.split.pop_front() {
            Some(update) => update,
            None => {
                let update = stream.ready()?;
                self.first_of(update)
            }
        };
        Some(self.take(update))
    }

    /// How many tokens come together is the workers' business: where it could matter, they are taken
    /// one at a time.
    fn first_of(&mut self, mut update: RequestUpdate) -> RequestUpdate {
        if self.transcription.is_parsed && update.tokens.len() > 1 {
            let finish = std::mem::take(&mut update.finish);
            for token in update.tokens.split_off(1) {
                let tokens = vec![token];
                self.split.push_back(RequestUpdate { tokens, ..Default::default() });
            }
            self.split.back_mut().expect("there is a second token").finish = finish;
        }
        update
    }

    fn take(&mut self, update: RequestUpdate) -> Piece {
        let finish = update.finish();
        let mut piece = Piece { cached_tokens: update.cached_tokens, ..Default::default() };
        piece.prompt = self.prompt_report(&update.prompt_tokens);
        let mut stopped = false;
        let tokens = update.tokens.len();
        for (index, token) in update.tokens.into_iter().enumerate() {
            piece.tokens += 1;
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
        if self.transcription.is_hidden {
            (piece.text, piece.logprobs, piece.tokens) = Default::default();
        }
        if piece.finish.is_some() {
            // Where a stop string ended it, this cancels what the worker still does.
            self.stream = None;
            self.split.clear();
        }
        piece
    }

    /// Adds what of a token's text is certain to `text`. True: a stop string is complete.
    fn append(&mut self, token: &v1::Token, text: &mut String) -> bool {
        let Transcription { model, shown_specials, .. } = &self.transcription;
        let tokenizer = &model.tokenizer;
        let is_shown = shown_specials.contains(&token.id);
        let decoded = self.detokenizer.push(tokenizer, token.id, is_shown);
        let (start, offset_characters) = (self.decoded_bytes, self.decoded_characters);
        self.decoded_bytes += decoded.len();
        if let Some(logprob) = token.logprob.filter(|_| !tokenizer.is_special(token.id)) {
            self.decoded_characters += decoded.chars().count();
            let token = with_text(model, token, Some(logprob), offset_characters);
            self.held.push_back(HeldLogprobs { start, end: self.decoded_bytes, token });
        }
        let matched = self.stop.push(&decoded);
        text.push_str(&matched.emit);
        matched.stopped
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

    fn prompt_report(&self, tokens: &[v1::Token]) -> Vec<TokenText> {
        let model = &self.transcription.model;
        tokens.iter().map(|token| with_text(model, token, token.logprob, 0)).collect()
    }
}

/// A token as logprobs report it.
pub fn with_text(
    model: &Model,
    token: &v1::Token,
    logprob: Option<f32>,
    offset_characters: usize,
) -> TokenText {
    let bytes = |id: u32| model.tokenizer.token_bytes(id).to_vec();
    let text = |id: u32| String::from_utf8_lossy(model.tokenizer.token_bytes(id)).into_owned();
    let alternative = |top: &v1::TokenLogprob| (text(top.id), bytes(top.id), top.logprob);
    TokenText {
        text: text(token.id),
        bytes: bytes(token.id),
        offset_characters,
        logprob,
        is_echoed: false,
        is_special: model.tokenizer.is_special(token.id),
        top: token.top_logprobs.iter().map(alternative).collect(),
    }
}
