//! From the text of an answer to its parts.

use super::deepseek::DeepSeekCalls;
use super::harmony::HarmonyMessages;
use super::json_calls::JsonCalls;
use super::output::{Delta, Output};
use super::pythonic::PythonicCalls;
use super::thinking::ThinkingParser;

/// Parses the text of one choice while it comes. However the text is cut into pieces, the deltas put
/// together are the same; what they say is never taken back.
#[derive(Debug)]
pub struct AnswerParser {
    thinking: Option<ThinkingParser>,
    calls: Calls,
    /// What has come and is not yet understood: less than a marker, mostly nothing.
    text: String,
    output: Output,
}

/// How calls are written.
#[derive(Debug)]
pub(super) enum Calls {
    /// Not at all.
    None,
    Json(JsonCalls),
    DeepSeek(DeepSeekCalls),
    Harmony(HarmonyMessages),
    Pythonic(PythonicCalls),
}

impl AnswerParser {
    pub(super) fn new(thinking: Option<ThinkingParser>, calls: Calls, with_tools: bool) -> Self {
        Self { thinking, calls, text: String::new(), output: Output::new(with_tools) }
    }

    /// The names of the functions that may be called.
    pub fn with_functions<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.output.know(names.into_iter().map(str::to_owned).collect());
        self
    }

    /// Calls after the first are left out of the answer.
    pub fn with_one_call(mut self) -> Self {
        self.output.keep_one_call();
        self
    }

    /// What is new with this text.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.text.push_str(text);
        self.advance(false);
        self.output.take()
    }

    /// No text comes any more: what was held back. A call that was cut off keeps its arguments so far.
    pub fn finish(&mut self) -> Vec<Delta> {
        self.advance(true);
        if let Some(thinking) = &mut self.thinking {
            thinking.finish(&mut self.output);
        }
        if let Calls::Json(calls) = &mut self.calls {
            calls.finish(&mut self.output);
        }
        let rest = std::mem::take(&mut self.text);
        self.output.hold(&rest);
        self.output.finish();
        self.output.take()
    }

    /// Calls so far, without those left out.
    pub fn tool_calls(&self) -> u32 {
        self.output.calls()
    }

    fn advance(&mut self, is_end: bool) {
        let (text, mut at) = (std::mem::take(&mut self.text), 0);
        if let Some(thinking) = &mut self.thinking {
            let (bytes, is_over) = thinking.feed(&text, is_end, &mut self.output);
            at = bytes;
            if is_over {
                self.thinking = None;
            }
        }
        while self.thinking.is_none() && at < text.len() {
            let Some(bytes) = self.calls.step(&text[at..], is_end, &mut self.output) else { break };
            at += bytes;
        }
        self.text = text;
        self.text.drain(..at);
    }
}

impl Calls {
    /// The bytes taken of a text that is not empty, `None` if more must come first.
    fn step(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        match self {
            Calls::None => {
                output.content(text);
                Some(text.len())
            }
            Calls::Json(calls) => calls.step(text, is_end, output),
            Calls::DeepSeek(calls) => calls.step(text, is_end, output),
            Calls::Harmony(messages) => messages.step(text, is_end, output),
            Calls::Pythonic(calls) => calls.step(text, is_end, output),
        }
    }
}
