//! The chunks of a stream, in the dialect of its request.

use crate::openai::{ChatStream, CompletionStream, TokenText, Usage};

/// A stream's chunks in the request's dialect.
pub enum Chunks {
    /// Chat completion chunks.
    Chat(ChatStream),
    /// Text completion chunks.
    Completion(CompletionStream),
}

impl Chunks {
    /// What opens a stream, if anything does.
    pub fn first(&self, usage: Usage) -> Option<String> {
        match self {
            Self::Chat(stream) => Some(stream.first(usage)),
            Self::Completion(_) => None,
        }
    }

    /// More text.
    pub fn text(&self, text: &str, logprobs: Option<&[TokenText]>, usage: Usage) -> String {
        match self {
            Self::Chat(stream) => stream.text(text, logprobs, usage),
            Self::Completion(stream) => stream.text(text, logprobs, usage),
        }
    }

    /// The end of the choice.
    pub fn finish(&self, reason: &str, usage: Usage) -> String {
        match self {
            Self::Chat(stream) => stream.finish(reason, usage),
            Self::Completion(stream) => stream.finish(reason, usage),
        }
    }

    /// The usage chunk, where it was asked for.
    pub fn usage(&self, usage: Usage) -> Option<String> {
        match self {
            Self::Chat(stream) => stream.usage(usage),
            Self::Completion(stream) => stream.usage(usage),
        }
    }
}
