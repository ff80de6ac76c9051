//! One choice of a chat answer: its text becomes content, reasoning and calls.

use crate::generation::Piece;
use crate::openai::TokenText;
use crate::tools::{AnswerParser, Delta};

/// What a choice has said so far.
#[derive(Default)]
pub struct Speaker {
    /// Absent: all is content.
    parser: Option<AnswerParser>,
    /// Logprobs of text whose kind is not known yet.
    logprobs: Vec<TokenText>,
    /// Whether its role was told.
    pub has_begun: bool,
    is_legacy: bool,
}

/// What a piece of a choice is made of.
pub struct Said {
    /// In order.
    pub deltas: Vec<Delta>,
    /// Of the content among them.
    pub logprobs: Vec<TokenText>,
    /// Tokens of reasoning.
    pub reasoning_tokens: u32,
    /// Why the choice ended, if it did.
    pub finish: Option<&'static str>,
}

impl Speaker {
    /// One that has said nothing.
    pub fn new(parser: Option<AnswerParser>, is_legacy: bool) -> Self {
        Self { parser, is_legacy, ..Default::default() }
    }

    /// Takes what came.
    pub fn hear(&mut self, piece: Piece) -> Said {
        let Piece { text, logprobs, tokens, finish, .. } = piece;
        let Some(parser) = &mut self.parser else {
            let deltas = if text.is_empty() { Vec::new() } else { vec![Delta::Content(text)] };
            return Said { deltas, logprobs, reasoning_tokens: 0, finish };
        };
        let mut deltas = parser.push(&text);
        if finish.is_some() {
            deltas.extend(parser.finish());
        }
        self.logprobs.extend(logprobs);
        let is_reasoning = |delta: &Delta| matches!(delta, Delta::Reasoning(_));
        let is_content = |delta: &Delta| matches!(delta, Delta::Content(_));
        let all_reasoning = !deltas.is_empty() && deltas.iter().all(is_reasoning);
        // Calls and reasoning have no logprobs in this dialect.
        let settled =
            if deltas.is_empty() { Vec::new() } else { std::mem::take(&mut self.logprobs) };
        let logprobs = if deltas.iter().any(is_content) { settled } else { Vec::new() };
        let has_called = parser.tool_calls() > 0;
        Said {
            deltas,
            logprobs,
            reasoning_tokens: if all_reasoning { tokens } else { 0 },
            finish: match finish {
                Some("stop") if has_called && self.is_legacy => Some("function_call"),
                Some("stop") if has_called => Some("tool_calls"),
                finish => finish,
            },
        }
    }
}
