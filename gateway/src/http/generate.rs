//! What both generating endpoints do once they have tokens: check the room, dispatch, answer whole
//! or as a stream.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use protocol::v1;

use super::Shared;
use super::admit::Place;
use super::chunks::Chunks;
use super::identify::random_id;
use super::listing::json;
use super::sse;
use crate::dispatch::Prompt;
use crate::generation::{Generation, Piece};
use crate::migration::TokenStream;
use crate::models::Model;
use crate::openai::{
    ApiError, ChatStream, CompletionStream, Head, Parameters, StreamOptions, Usage,
    chat_completion, text_completion,
};

/// Which workers answer and why, for requests that ask.
pub const X_STATOR_ROUTE: HeaderName = HeaderName::from_static("x-stator-route");

/// Unicode normalization leaves at least this part of a text's bytes.
const NORMALIZATION_SHRINKS_BY: usize = 4;

/// What OpenAI generates for a completion request that does not say.
const COMPLETION_MAX_TOKENS: u32 = 16;

/// The dialect of a request.
#[derive(Clone, Copy, PartialEq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// A validated request.
pub struct Tokenized {
    /// Its dialect.
    pub endpoint: Endpoint,
    /// Who answers.
    pub model: Arc<Model>,
    /// How.
    pub parameters: Parameters,
    /// What to continue.
    pub prompt: Vec<u32>,
}

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
pub async fn respond(
    shared: &Shared,
    place: Place,
    request: Tokenized,
) -> Result<Response, ApiError> {
    tokio::select! {
        biased;
        answer = answer(shared, place, request) => answer,
        () = shared.cut.cancelled() => Err(ApiError::shutting_down()),
    }
}

async fn answer(shared: &Shared, place: Place, request: Tokenized) -> Result<Response, ApiError> {
    let Place { request_id, room, explain_route } = place;
    request.check_logit_bias()?;
    let max_tokens = request.max_tokens()?;
    if max_tokens == 0 {
        return Ok(request.nothing());
    }
    let prompt = request.to_dispatch(max_tokens, request_id, explain_route);
    let stream = TokenStream::begin(shared.dispatcher.clone(), prompt).await?;
    let explanation = stream.explanation().to_string();
    let head = request.head(stream.numerics_id());
    let prompt_tokens = request.prompt.len() as u32;
    let (model, stop) = (request.model.clone(), request.parameters.stop.clone());
    let generation = Generation::new(model, stream, stop, prompt_tokens);
    let mut response = match request.parameters.stream {
        Some(options) => {
            let ends = sse::Ends { _room: room, cut: shared.cut.clone() };
            stream_answer(request.chunks(head, options), generation, ends).await?
        }
        None => request.whole_answer(&head, generation).await?,
    };
    // A worker's name may hold what a header cannot.
    if explain_route && let Ok(explanation) = HeaderValue::from_str(&explanation) {
        response.headers_mut().insert(X_STATOR_ROUTE, explanation);
    }
    Ok(response)
}

/// What goes wrong before the first token has a status of its own; later it is an event.
async fn stream_answer(
    chunks: Chunks,
    mut generation: Generation,
    ends: sse::Ends,
) -> Result<Response, ApiError> {
    let first = generation.next().await?.unwrap_or_default();
    Ok(sse::response(chunks, first, generation, ends))
}

impl Tokenized {
    /// How many tokens the answer may have. Errors: the context has no room.
    fn max_tokens(&self) -> Result<u32, ApiError> {
        let (context, prompt) = (self.model.context_tokens, self.prompt.len());
        let param = if self.endpoint == Endpoint::Chat { "messages" } else { "prompt" };
        if prompt == 0 {
            return Err(ApiError::invalid_value(param, format!("'{param}' has no tokens.")));
        }
        let wanted = self.parameters.max_tokens;
        let room = context.saturating_sub(prompt) as u32;
        let default = match self.endpoint {
            Endpoint::Chat => room,
            Endpoint::Completion => COMPLETION_MAX_TOKENS.max(self.parameters.min_tokens),
        };
        if room == 0 || wanted.is_some_and(|wanted| wanted > room) {
            let wanted = wanted.map(|tokens| tokens as usize);
            return Err(ApiError::context_length_exceeded(param, context, prompt, wanted));
        }
        Ok(wanted.unwrap_or(default.min(room)))
    }

    fn check_logit_bias(&self) -> Result<(), ApiError> {
        let size = self.model.vocabulary_size;
        match self.parameters.logit_bias.iter().find(|(token, _)| *token as usize >= size) {
            Some((token, _)) => {
                let message = format!(
                    "Invalid key in 'logit_bias': {token}. \
                     Expected a token id below the vocabulary's size of {size}."
                );
                Err(ApiError::invalid_value("logit_bias", message))
            }
            None => Ok(()),
        }
    }

    fn to_dispatch(&self, max_tokens: u32, request_id: String, explain: bool) -> Prompt {
        let Parameters { logit_bias, .. } = &self.parameters;
        let bias = |(token, bias): &(u32, f32)| v1::LogitBias { token: *token, bias: *bias };
        Prompt {
            model: self.parameters.model.clone(),
            request_id,
            tokens: self.prompt.clone(),
            generated: Vec::new(),
            sampling: v1::Sampling {
                temperature: self.parameters.temperature,
                top_p: self.parameters.top_p,
                top_k: self.parameters.top_k,
                min_p: self.parameters.min_p,
                presence_penalty: self.parameters.presence_penalty,
                frequency_penalty: self.parameters.frequency_penalty,
                repetition_penalty: self.parameters.repetition_penalty,
                logit_bias: logit_bias.iter().map(bias).collect(),
                seed: self.parameters.seed.map_or_else(rand::random, |seed| seed as u64),
                choice: 0,
                logprobs: self.parameters.logprobs,
            },
            stopping: v1::Stopping {
                max_tokens,
                min_tokens: self.parameters.min_tokens,
                ignore_eos: self.parameters.ignore_eos,
                stop_token_ids: self.parameters.stop_token_ids.clone(),
            },
            cache_salt: self.parameters.cache_salt.clone().unwrap_or_default(),
            grammar: String::new(),
            prompt_logprobs: None,
            explain,
        }
    }

    fn head(&self, numerics_id: &str) -> Head {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = if self.endpoint == Endpoint::Chat { "chatcmpl-" } else { "cmpl-" };
        Head {
            id: random_id(prefix),
            created_s: since_epoch.as_secs(),
            model: self.model.name.clone(),
            system_fingerprint: format!("fp_{numerics_id}"),
        }
    }

    fn chunks(&self, head: Head, options: StreamOptions) -> Chunks {
        match self.endpoint {
            Endpoint::Chat => Chunks::Chat(ChatStream::new(head, options)),
            Endpoint::Completion => Chunks::Completion(CompletionStream::new(head, options)),
        }
    }

    async fn whole_answer(
        &self,
        head: &Head,
        mut generation: Generation,
    ) -> Result<Response, ApiError> {
        let mut answer = Piece::default();
        while let Some(piece) = generation.next().await? {
            answer.text.push_str(&piece.text);
            answer.logprobs.extend(piece.logprobs);
            (answer.usage, answer.finish) = (piece.usage, piece.finish);
        }
        Ok(self.whole(head, &answer))
    }

    fn whole(&self, head: &Head, answer: &Piece) -> Response {
        let Piece { text, usage, finish, .. } = answer;
        let logprobs = self.parameters.logprobs.map(|_| answer.logprobs.as_slice());
        let finish = finish.unwrap_or("stop");
        json(match self.endpoint {
            Endpoint::Chat => chat_completion(head, text, logprobs, finish, *usage),
            Endpoint::Completion => text_completion(head, text, logprobs, finish, *usage),
        })
    }

    /// The answer of no tokens, which `max_tokens: 0` asks for.
    fn nothing(&self) -> Response {
        let usage = Usage { prompt_tokens: self.prompt.len() as u32, ..Default::default() };
        let nothing = Piece { usage, finish: Some("length"), ..Default::default() };
        let head = self.head("none");
        match self.parameters.stream {
            Some(options) => sse::finished(self.chunks(head, options), nothing),
            None => self.whole(&head, &nothing),
        }
    }
}
