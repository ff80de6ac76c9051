//! A validated request in tokens: what is checked once they are known, and what workers are asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::v1;

use super::identify::random_id;
use super::speaker::Speaker;
use crate::dispatch::Prompt;
use crate::generation::Transcription;
use crate::models::Model;
use crate::openai::{ApiError, Head, Parameters};
use crate::tools::AnswerParser;

/// What OpenAI generates for a completion request that does not say.
const COMPLETION_MAX_TOKENS: u32 = 16;

/// Choices that one request may have over all its prompts.
const CHOICES_MAX: usize = 2048;

/// The dialect of a request.
#[derive(Clone, Copy, PartialEq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// A validated request.
pub struct Asked {
    /// Its dialect.
    pub endpoint: Endpoint,
    /// Who answers.
    pub model: Arc<Model>,
    /// How.
    pub parameters: Parameters,
    /// What to continue; at least one.
    pub prompts: Vec<PromptTokens>,
    /// What the answer must match; empty: anything.
    pub grammar: Arc<str>,
    /// Which field of the request asked for that.
    pub grammar_param: Arc<str>,
    /// How calls and reasoning are found in the answer.
    pub speech: Option<Speech>,
}

/// A prompt as it was asked, and in tokens.
pub struct PromptTokens {
    /// Its tokens.
    pub tokens: Arc<[u32]>,
    /// Its text, where it came as one.
    pub text: Option<String>,
}

/// Makes a parser for each choice, and the special tokens that it has to see.
pub struct Speech {
    /// A fresh one.
    pub new_parser: Box<dyn Fn() -> AnswerParser + Send + Sync>,
    /// See `Transcription`.
    pub shown_specials: Arc<[u32]>,
    /// See `ChatChoice`.
    pub is_legacy: bool,
}

impl Asked {
    /// Checks what depends on the model. Errors: the first thing that is wrong.
    pub fn check(&self) -> Result<(), ApiError> {
        let choices = self.prompts.len() * self.parameters.best_of as usize;
        if choices > CHOICES_MAX {
            let length_max = CHOICES_MAX / self.parameters.best_of as usize;
            return Err(ApiError::array_too_long("prompt", length_max, self.prompts.len()));
        }
        for (index, prompt) in self.prompts.iter().enumerate() {
            self.check_room(&self.param(index), prompt.tokens.len())?;
        }
        self.check_logit_bias()
    }

    /// Whether nothing is to be computed: no tokens are wanted, and no logprobs of those there are.
    pub fn wants_nothing(&self) -> bool {
        self.parameters.max_tokens == Some(0) && !self.reports_prompt()
    }

    /// Whether the prompt's own tokens are to be reported with their logprobs.
    pub fn reports_prompt(&self) -> bool {
        self.parameters.echo && self.parameters.logprobs.is_some()
    }

    /// What workers are asked, one entry per prompt.
    pub fn to_dispatch(&self, request_id: &str, explain: bool) -> VecDeque<Prompt> {
        // Where no seed was given, equal prompts need not have equal answers.
        let seed = || self.parameters.seed.map_or_else(rand::random, |seed| seed as u64);
        let prompt = |prompt: &PromptTokens| Prompt {
            model: self.model.name.clone(),
            request_id: request_id.to_string(),
            tokens: prompt.tokens.clone(),
            generated: Vec::new(),
            sampling: self.sampling(seed()),
            stopping: self.stopping(prompt.tokens.len()),
            cache_salt: self.parameters.cache_salt.clone().unwrap_or_default(),
            grammar: self.grammar.clone(),
            grammar_param: self.grammar_param.clone(),
            prompt_logprobs: self.parameters.logprobs.filter(|_| self.reports_prompt()),
            priority: self.parameters.priority,
            near: None,
            explain,
        };
        self.prompts.iter().map(prompt).collect()
    }

    /// A choice that has said nothing.
    pub fn speaker(&self) -> Speaker {
        Speaker::new(self.speech.as_ref().map(|speech| (speech.new_parser)()), self.is_legacy())
    }

    /// Whether calls are told as they were before there were tools.
    pub fn is_legacy(&self) -> bool {
        self.speech.as_ref().is_some_and(|speech| speech.is_legacy)
    }

    /// How tokens become text.
    pub fn transcription(&self) -> Transcription {
        let shown_specials = self.speech.as_ref().map(|speech| speech.shown_specials.clone());
        Transcription {
            model: self.model.clone(),
            stop: self.parameters.stop.clone(),
            shown_specials: shown_specials.unwrap_or_default(),
            is_parsed: self.speech.is_some(),
            is_hidden: self.parameters.max_tokens == Some(0),
        }
    }

    /// What all objects of the answer carry.
    pub fn head(&self, numerics_id: &str) -> Head {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = if self.endpoint == Endpoint::Chat { "chatcmpl-" } else { "cmpl-" };
        Head {
            id: random_id(prefix),
            created_s: since_epoch.as_secs(),
            model: self.model.name.clone(),
            system_fingerprint: format!("fp_{numerics_id}"),
        }
    }

    fn param(&self, prompt: usize) -> String {
        match self.endpoint {
            Endpoint::Chat => "messages".to_string(),
            Endpoint::Completion if self.prompts.len() == 1 => "prompt".to_string(),
            Endpoint::Completion => format!("prompt[{prompt}]"),
        }
    }

    fn check_room(&self, param: &str, prompt_tokens: usize) -> Result<(), ApiError> {
        if prompt_tokens == 0 {
            return Err(ApiError::invalid_value(param, format!("'{param}' has no tokens.")));
        }
        let context = self.model.context_tokens;
        let room = context.saturating_sub(prompt_tokens);
        let wanted = self.parameters.max_tokens.map(|tokens| tokens as usize);
        if room == 0 || wanted.is_some_and(|wanted| wanted > room) {
            return Err(ApiError::context_length_exceeded(param, context, prompt_tokens, wanted));
        }
        Ok(())
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

    fn sampling(&self, seed: u64) -> v1::Sampling {
        let parameters = &self.parameters;
        let bias = |(token, bias): &(u32, f32)| v1::LogitBias { token: *token, bias: *bias };
        // The best are those with the largest logprobs.
        let ranks = parameters.best_of > parameters.n;
        v1::Sampling {
            temperature: parameters.temperature,
            top_p: parameters.top_p,
            top_k: parameters.top_k,
            min_p: parameters.min_p,
            presence_penalty: parameters.presence_penalty,
            frequency_penalty: parameters.frequency_penalty,
            repetition_penalty: parameters.repetition_penalty,
            logit_bias: parameters.logit_bias.iter().map(bias).collect(),
            seed,
            choice: 0,
            logprobs: parameters.logprobs.or(ranks.then_some(0)),
        }
    }

    fn stopping(&self, prompt_tokens: usize) -> v1::Stopping {
        let parameters = &self.parameters;
        let room = self.model.context_tokens.saturating_sub(prompt_tokens) as u32;
        let default = match self.endpoint {
            Endpoint::Chat => room,
            Endpoint::Completion => COMPLETION_MAX_TOKENS.max(parameters.min_tokens).min(room),
        };
        v1::Stopping {
            // A report on the prompt comes with a token, which is then not shown.
            max_tokens: parameters.max_tokens.unwrap_or(default).max(1),
            min_tokens: parameters.min_tokens,
            ignore_eos: parameters.ignore_eos,
            stop_token_ids: parameters.stop_token_ids.clone(),
        }
    }
}
