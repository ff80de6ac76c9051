//! The events of a stream, in the dialect of its request.

use super::asked::{Asked, Endpoint};
use super::echo::Echo;
use super::speaker::{Said, Speaker};
use crate::choices::News;
use crate::openai::{
    ApiError, ChatStream, CompletionStream, Head, StreamOptions, TokenText, Usage,
};

const DONE: &[u8] = b"data: [DONE]\n\n";

/// Writes a stream's events.
pub struct Chunks {
    dialect: Dialect,
    reports_logprobs: bool,
    reasoning_tokens: u32,
}

enum Dialect {
    Chat { stream: ChatStream, speakers: Vec<Speaker> },
    Completion { stream: CompletionStream, echo: Option<Echo> },
}

impl Chunks {
    /// For the answer to a request.
    pub fn new(asked: &Asked, head: &Head, options: StreamOptions) -> Self {
        let dialect = match asked.endpoint {
            Endpoint::Chat => Dialect::Chat {
                stream: ChatStream::new(head, options, asked.is_legacy()),
                speakers: (0..asked.parameters.n).map(|_| asked.speaker()).collect(),
            },
            Endpoint::Completion => Dialect::Completion {
                stream: CompletionStream::new(head, options),
                echo: Echo::of(asked),
            },
        };
        Self { dialect, reports_logprobs: asked.parameters.logprobs.is_some(), reasoning_tokens: 0 }
    }

    /// What a choice gained, after which `usage` is what was used.
    pub fn news(&mut self, out: &mut Vec<u8>, news: News, usage: Usage) {
        let News { choice, mut piece } = news;
        match &mut self.dialect {
            Dialect::Chat { stream, speakers } => {
                let speaker = &mut speakers[choice];
                let has_begun = std::mem::replace(&mut speaker.has_begun, true);
                let said = speaker.hear(piece);
                self.reasoning_tokens += said.reasoning_tokens;
                let usage = Usage { reasoning_tokens: self.reasoning_tokens, ..usage };
                if !has_begun {
                    stream.role(out, choice, usage);
                }
                write_said(stream, out, choice, &said, usage);
            }
            Dialect::Completion { stream, echo } => {
                echo.iter_mut().for_each(|echo| echo.apply(choice, &mut piece));
                let logprobs = piece.logprobs.as_slice();
                let logprobs = Some(logprobs).filter(|tokens| !tokens.is_empty());
                let logprobs = logprobs.filter(|_| self.reports_logprobs);
                if !piece.text.is_empty() || logprobs.is_some() {
                    stream.text(out, choice, &piece.text, logprobs, usage);
                }
                if let Some(reason) = piece.finish {
                    stream.finish(out, choice, reason, usage);
                }
            }
        }
    }

    /// The end, after which `usage` is what was used in all.
    pub fn end(&self, out: &mut Vec<u8>, usage: Usage) {
        match &self.dialect {
            Dialect::Chat { stream, .. } => {
                stream.usage(out, Usage { reasoning_tokens: self.reasoning_tokens, ..usage });
            }
            Dialect::Completion { stream, .. } => stream.usage(out, usage),
        }
        out.extend_from_slice(DONE);
    }

    /// The end of an answer that failed.
    pub fn error(out: &mut Vec<u8>, error: &ApiError) {
        out.extend_from_slice(format!("data: {}\n\n", error.envelope()).as_bytes());
        out.extend_from_slice(DONE);
    }
}

fn write_said(stream: &ChatStream, out: &mut Vec<u8>, choice: usize, said: &Said, usage: Usage) {
    let mut logprobs = Some(said.logprobs.as_slice()).filter(|tokens| !tokens.is_empty());
    for delta in &said.deltas {
        let is_content = matches!(delta, crate::tools::Delta::Content(_));
        let logprobs: Option<&[TokenText]> = if is_content { logprobs.take() } else { None };
        stream.delta(out, choice, delta, logprobs, usage);
    }
    if let Some(tokens) = logprobs {
        // Tokens whose text is the beginning of a character.
        let nothing = crate::tools::Delta::Content(String::new());
        stream.delta(out, choice, &nothing, Some(tokens), usage);
    }
    if let Some(reason) = said.finish {
        stream.finish(out, choice, reason, usage);
    }
}
