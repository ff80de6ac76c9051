//! One choice of a chat answer: its text becomes content, reasoning and calls.

use crate::generation::Piece;
use crate::openai::TokenText;
use crate::tools::{AnswerParser, Delta};

/// What a choice has said so far.
#[derive(Default)]
pub struct Speaker {
    /// Absent: all is content.
    parser: Option<AnswerParser>,
    /// Tokens whose text is held, because it may be markup, and their logprobs.
    held_tokens: u32,
    held_logprobs: Vec<TokenText>,
    /// The last delta was of the content, or there was none yet.
    is_in_content: bool,
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
    /// One that has said nothing. `is_legacy`: see `ChatChoice`.
    pub fn new(parser: Option<AnswerParser>, is_legacy: bool) -> Self {
        Self { parser, is_legacy, is_in_content: true, ..Default::default() }
    }

    /// Takes what came: where there is a parser, one token at a time.
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
        let has_called = parser.tool_calls() > 0;
        let (logprobs, reasoning_tokens) = self.settle(&deltas, logprobs, tokens);
        let finish = match finish {
            Some("stop") if has_called && self.is_legacy => Some("function_call"),
            Some("stop") if has_called => Some("tool_calls"),
            finish => finish,
        };
        Said { deltas, logprobs, reasoning_tokens, finish }
    }

    /// Which logprobs are the content's, and how many tokens are reasoning. Tokens without a delta wait
    /// for the next one: they are of its kind, or markup between two kinds.
    fn settle(
        &mut self,
        deltas: &[Delta],
        mut logprobs: Vec<TokenText>,
        tokens: u32,
    ) -> (Vec<TokenText>, u32) {
        let Some(last) = deltas.last() else {
            self.held_tokens += tokens;
            self.held_logprobs.append(&mut logprobs);
            return (Vec::new(), 0);
        };
        let is_reasoning = |delta: &Delta| matches!(delta, Delta::Reasoning(_));
        let tokens = std::mem::take(&mut self.held_tokens) + tokens;
        let reasoning_tokens = if deltas.iter().any(is_reasoning) { tokens } else { 0 };
        let mut held = std::mem::take(&mut self.held_logprobs);
        let was_in_content = self.is_in_content;
        self.is_in_content = matches!(last, Delta::Content(_));
        match (self.is_in_content, was_in_content) {
            (false, _) => (Vec::new(), reasoning_tokens),
            (true, false) => (logprobs, reasoning_tokens),
            (true, true) => {
                held.append(&mut logprobs);
                (held, reasoning_tokens)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokenizer::test_support::byte_level_tokenizer;

    use super::*;
    use crate::tools::Dialect;

    const TEMPLATE: &str = "{{ '<think></think>' }} {{ '<tool_call></tool_call>' }}";

    /// Content, the tokens that its logprobs spell, and reasoning tokens of an answer.
    #[track_caller]
    fn check(answer: &[&str], content: &str, spelled: &str, reasoning_tokens: u32, finish: &str) {
        let dialect = Dialect::of(Some(TEMPLATE), &byte_level_tokenizer());
        let parser = dialect.parser(true, true).with_functions(["f"]);
        let mut speaker = Speaker::new(Some(parser), false);
        let mut heard = (String::new(), String::new(), 0, None);
        for (index, text) in answer.iter().enumerate() {
            let token = TokenText { text: (*text).into(), ..Default::default() };
            let is_last = index + 1 == answer.len();
            let said = speaker.hear(Piece {
                text: (*text).into(),
                logprobs: vec![token],
                tokens: 1,
                finish: is_last.then_some("stop"),
                ..Default::default()
            });
            for delta in said.deltas {
                if let Delta::Content(text) = delta {
                    heard.0.push_str(&text);
                }
            }
            heard.1.extend(said.logprobs.into_iter().map(|token| token.text));
            heard.2 += said.reasoning_tokens;
            heard.3 = said.finish;
        }
        assert_eq!(heard, (content.into(), spelled.into(), reasoning_tokens, Some(finish)));
    }

    #[test]
    fn logprobs_are_those_of_the_content() {
        check(&["Hel", "lo", " <", "b"], "Hello <b", "Hello <b", 0, "stop");
        check(&["<think>", "so", " it", "</think>", "Yes", "."], "Yes.", "Yes.", 3, "stop");
        let call = ["<tool_call>", "{\"name\": \"f\", ", "\"arguments\": {}}", "</tool_call>"];
        check(&call, "", "", 0, "tool_calls");
        check(&[&["Well"], &call[..]].concat(), "Well", "Well", 0, "tool_calls");
    }
}
