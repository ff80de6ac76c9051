//! How a model writes calls and reasoning, found from its chat template.

use tokenizer::Tokenizer;

use super::answer::{AnswerParser, Calls};
use super::json_calls::{JsonCalls, Style};
use super::thinking::ThinkingParser;
use super::{deepseek, harmony, pythonic};

pub const HERMES_OPEN: &str = "<tool_call>";
pub const HERMES_CLOSE: &str = "</tool_call>";
pub const LLAMA_OPEN: &str = "<|python_tag|>";
pub const MISTRAL_OPEN: &str = "[TOOL_CALLS]";
pub const MISTRAL_ARGUMENTS: &str = "[ARGS]";

const THINK: [&str; 2] = ["<think>", "</think>"];
const MISTRAL_THINK: [&str; 2] = ["[THINK]", "[/THINK]"];

/// How a model writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    pub(super) calls: CallFormat,
    /// What is around reasoning, apart from harmony's channels.
    pub(super) thinking: Option<[&'static str; 2]>,
    /// Markers that are special tokens, with their ids.
    pub(super) specials: Vec<(&'static str, u32)>,
    shown: Vec<u32>,
    /// How many of those have nothing to do with calls; they come first.
    shown_without_tools: usize,
}

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFormat {
    /// It has not learnt to.
    None,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `{"name": …, "parameters": …}`, perhaps behind `<|python_tag|>`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`: Mistral until 2024.
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{…}`: Mistral since.
    MistralNamed,
    /// Markers around a fenced block: DeepSeek V3, R1.
    DeepSeekV3,
    /// Markers around a name and arguments: DeepSeek V3.1.
    DeepSeekV31,
    /// Messages in channels: gpt-oss.
    Harmony,
    /// `[f(a=1)]`: Llama 4, Llama 3.2.
    Pythonic,
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// With its text.
    Absent,
    /// Perhaps with reasoning.
    MayBegin,
    /// Within the reasoning that the prompt opened.
    Open,
}

impl Dialect {
    /// The dialect of a model: from what its template writes itself.
    pub fn of(template: Option<&str>, tokenizer: &Tokenizer) -> Dialect {
        let template = template.unwrap_or_default();
        let calls = call_format(template);
        let thinking = [THINK, MISTRAL_THINK]
            .into_iter()
            .find(|markers| calls != CallFormat::Harmony && template.contains(markers[1]));
        let for_reasoning = thinking.into_iter().flatten();
        let without_tools: Vec<_> = match calls {
            CallFormat::Harmony => calls.markers().to_vec(),
            _ => for_reasoning.collect(),
        };
        let is_new = |marker: &&&str| !without_tools.contains(*marker);
        let of_calls = calls.markers().iter().filter(is_new);
        let markers = without_tools.iter().chain(of_calls).copied();
        let special = |marker| {
            let id = tokenizer.token_id(marker).filter(|id| tokenizer.is_special(*id))?;
            Some((marker, id))
        };
        let specials: Vec<_> = markers.filter_map(special).collect();
        let shown = specials.iter().map(|(_, id)| *id).collect();
        let is_without_tools = |(marker, _): &&(&str, u32)| without_tools.contains(marker);
        let shown_without_tools = specials.iter().filter(is_without_tools).count();
        Dialect { calls, thinking, specials, shown, shown_without_tools }
    }

    /// Special tokens whose text a parser must see, though answers do not show them.
    pub fn shown_specials(&self) -> &[u32] {
        &self.shown
    }

    /// Those that a parser without tools must see. It takes the others for text.
    pub fn shown_specials_without_tools(&self) -> &[u32] {
        &self.shown[..self.shown_without_tools]
    }

    /// Whether answers may have reasoning, or markup even without calls.
    pub fn may_reason(&self) -> bool {
        self.thinking.is_some() || self.calls == CallFormat::Harmony
    }

    /// Where an answer to this rendered prompt begins.
    pub fn thinking_after(&self, prompt: &str) -> Thinking {
        let Some([open, close]) = self.thinking else { return Thinking::Absent };
        let prompt = prompt.trim_end();
        if prompt.ends_with(open) {
            Thinking::Open
        } else if prompt.ends_with(close) {
            Thinking::Absent
        } else {
            Thinking::MayBegin
        }
    }

    /// Whether an answer that begins so may have reasoning.
    pub(super) fn may_think(&self, thinking: Thinking) -> bool {
        self.calls == CallFormat::Harmony
            || (self.thinking.is_some() && thinking != Thinking::Absent)
    }

    /// A parser for an answer that may begin with reasoning, if `with_reasoning`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn parser(&self, with_tools: bool, with_reasoning: bool) -> AnswerParser {
        let thinking = if with_reasoning { Thinking::MayBegin } else { Thinking::Absent };
        self.parser_after(with_tools, thinking)
    }

    /// A parser for an answer that begins so.
    pub fn parser_after(&self, with_tools: bool, thinking: Thinking) -> AnswerParser {
        let is_open = thinking == Thinking::Open;
        let markers = self.thinking.filter(|_| thinking != Thinking::Absent);
        let thinking = markers.map(|[open, close]| ThinkingParser::new(open, close, is_open));
        AnswerParser::new(thinking, self.calls.parser(with_tools), with_tools)
    }
}

/// Markers of some dialects are part of others, so the order counts.
fn call_format(template: &str) -> CallFormat {
    let has = |text: &str| template.contains(text);
    if has(harmony::CHANNEL) && has(harmony::START) {
        CallFormat::Harmony
    } else if has(deepseek::CALLS_BEGIN) {
        let is_fenced = has("```json");
        if is_fenced { CallFormat::DeepSeekV3 } else { CallFormat::DeepSeekV31 }
    } else if has(MISTRAL_OPEN) {
        let is_named = has(MISTRAL_ARGUMENTS);
        if is_named { CallFormat::MistralNamed } else { CallFormat::MistralList }
    } else if has(HERMES_OPEN) {
        CallFormat::Hermes
    } else if has(pythonic::OPEN) || has("func_name1(") {
        CallFormat::Pythonic
    } else if has(LLAMA_OPEN) || (has("\"name\": ") && has("\"parameters\": ")) {
        CallFormat::Llama
    } else {
        CallFormat::None
    }
}

impl CallFormat {
    fn markers(self) -> &'static [&'static str] {
        match self {
            CallFormat::None => &[],
            CallFormat::Hermes => &[HERMES_OPEN, HERMES_CLOSE],
            CallFormat::Llama => &[LLAMA_OPEN],
            CallFormat::MistralList => &[MISTRAL_OPEN],
            CallFormat::MistralNamed => &[MISTRAL_OPEN, MISTRAL_ARGUMENTS, "[CALL_ID]"],
            CallFormat::DeepSeekV3 | CallFormat::DeepSeekV31 => &[
                deepseek::CALLS_BEGIN,
                deepseek::CALLS_END,
                deepseek::CALL_BEGIN,
                deepseek::CALL_END,
                deepseek::SEPARATOR,
            ],
            CallFormat::Harmony => &[
                harmony::START,
                harmony::CHANNEL,
                harmony::MESSAGE,
                harmony::CONSTRAIN,
                harmony::END,
                harmony::CALL,
                harmony::RETURN,
            ],
            CallFormat::Pythonic => &[pythonic::OPEN, pythonic::CLOSE],
        }
    }

    fn parser(self, with_tools: bool) -> Calls {
        let json = |opener, closer, is_bare, is_named| {
            Calls::Json(JsonCalls::new(Style { opener, closer, is_bare, is_named }))
        };
        match self {
            CallFormat::Harmony => Calls::Harmony(harmony::HarmonyMessages::new(with_tools)),
            _ if !with_tools => Calls::None,
            // Where a grammar makes it call, or the user's own words do.
            CallFormat::None => json(None, None, true, false),
            CallFormat::Hermes => json(Some(HERMES_OPEN), Some(HERMES_CLOSE), false, false),
            CallFormat::Llama => json(Some(LLAMA_OPEN), None, true, false),
            CallFormat::MistralList | CallFormat::MistralNamed => {
                json(Some(MISTRAL_OPEN), None, false, true)
            }
            CallFormat::DeepSeekV3 | CallFormat::DeepSeekV31 => {
                Calls::DeepSeek(deepseek::DeepSeekCalls::default())
            }
            CallFormat::Pythonic => Calls::Pythonic(pythonic::PythonicCalls::default()),
        }
    }
}
