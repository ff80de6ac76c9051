//! How many words make a prompt of so many tokens: asked of the server, whose tokenizer and chat
//! template nobody else knows.

use serde::Serialize;

use crate::args::Args;
use crate::client::Client;
use crate::conversation::PromptWords;
use crate::error::LoadtestError;
use crate::exchange::{Failure, exchange};
use crate::request::{RequestSettings, message};
use crate::words::WORDS;

/// What the server makes of words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// On average over the vocabulary.
    pub tokens_per_word: f64,
    /// What a prompt of one message has beside its words.
    pub overhead_tokens: f64,
    /// What a system message adds beside its words.
    pub system_overhead_tokens: f64,
}

/// A word of usual length, to compare with.
const WORD: &str = "time";

impl Calibration {
    /// Asks for one token each after a word, after the whole vocabulary, and after a word with a
    /// system message of a word.
    pub async fn measure(
        client: &Client,
        settings: &RequestSettings,
    ) -> Result<Self, LoadtestError> {
        let settings = RequestSettings { output_tokens: 1, ..settings.clone() };
        let word = message("user", WORD);
        let all = message("user", &format!("{WORD} {}", WORDS.join(" ")));
        let with_system = format!("{},{word}", message("system", WORD));
        let short = prompt_tokens(client, &settings, &word).await?;
        let long = prompt_tokens(client, &settings, &all).await?;
        let system = prompt_tokens(client, &settings, &with_system).await?;
        let tokens_per_word = (long - short) / WORDS.len() as f64;
        if tokens_per_word < 0.5 {
            return Err(LoadtestError::Server(format!(
                "the server counts {short} prompt tokens for one word and {long} for {}: its usage \
                 cannot size prompts",
                WORDS.len() + 1
            )));
        }
        Ok(Self {
            tokens_per_word,
            overhead_tokens: short - tokens_per_word,
            system_overhead_tokens: system - short - tokens_per_word,
        })
    }

    /// The words that make prompts as the arguments want them.
    pub fn words(&self, args: &Args) -> Result<PromptWords, LoadtestError> {
        let (input, prefix) = (f64::from(args.input_tokens), f64::from(args.prefix_tokens));
        let words = |tokens: f64| (tokens / self.tokens_per_word).round();
        let prefix_words = words(prefix - self.system_overhead_tokens);
        if prefix > 0.0 && prefix_words < 1.0 {
            return Err(LoadtestError::Arguments(format!(
                "--prefix-tokens {prefix} leaves no room for a word: a system message takes {:.0} \
                 tokens of this server's chat template",
                self.system_overhead_tokens
            )));
        }
        let question_words = words(input - prefix - self.overhead_tokens);
        if question_words < 1.0 {
            return Err(LoadtestError::Arguments(format!(
                "--input-tokens {input} leaves no room for a word: this server's chat template \
                 takes {:.0} tokens, and the prefix {prefix}",
                self.overhead_tokens
            )));
        }
        let prefix_words = if prefix > 0.0 { prefix_words as u32 } else { 0 };
        Ok(PromptWords { prefix: prefix_words, question: question_words as u32 })
    }
}

async fn prompt_tokens(
    client: &Client,
    settings: &RequestSettings,
    messages: &str,
) -> Result<f64, LoadtestError> {
    let refused = |failure: Failure| {
        LoadtestError::Server(format!("the server fails the first request: {}", failure.message()))
    };
    let answer = exchange(client, settings.body(messages), false, |_| {}).await.map_err(refused)?;
    let usage = answer.usage.ok_or_else(|| {
        let sentence = "the server's streams carry no usage (`stream_options.include_usage`), and \
            prompts cannot be sized without it";
        LoadtestError::Server(sentence.into())
    })?;
    Ok(usage.prompt_tokens as f64)
}
