//! What one event of a streamed chat completion says, in the dialects of the field.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

/// The event that ends a stream.
pub const DONE: &[u8] = b"[DONE]";

/// What matters of a chunk.
#[derive(Debug, Default, PartialEq)]
pub struct Chunk<'a> {
    /// The answer's text in it.
    pub text: Option<Cow<'a, str>>,
    /// It holds some of what the model wrote, be it answer or reasoning.
    pub has_content: bool,
    /// What the request has used so far.
    pub usage: Option<Usage>,
}

/// What a request has used, as the server counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    #[serde(default)]
    pub completion_tokens: u64,
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// A part of [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PromptTokensDetails {
    #[serde(default)]
    pub cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt tokens that a cache saved the server from computing.
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Text<'a>>,
    /// vLLM, SGLang, llama-server and DeepSeek.
    #[serde(borrow, default)]
    reasoning_content: Option<Text<'a>>,
    /// Newer vLLM, and OpenRouter.
    #[serde(borrow, default)]
    reasoning: Option<Text<'a>>,
}

/// serde borrows a `Cow` inside of an `Option` only through a type of its own.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Chunk<'a> {
    /// Reads an event's data. Errors: what the server reports, or why the event is none.
    pub fn read(data: &'a [u8]) -> Result<Self, String> {
        let shown = || shorten(&String::from_utf8_lossy(data));
        let wire: Wire = serde_json::from_slice(data)
            .map_err(|error| format!("unreadable event ({error}): {}", shown()))?;
        if let Some(error) = wire.error {
            return Err(error_message(&error).unwrap_or_else(shown));
        }
        let Some(choices) = wire.choices else {
            // An old vLLM puts an error's fields into the event itself.
            return match wire.usage {
                Some(usage) => Ok(Self { usage: Some(usage), ..Self::default() }),
                None => Err(error_in_body(data)),
            };
        };
        let delta = choices.into_iter().next().and_then(|choice| choice.delta);
        let filled = |text: Option<Text<'a>>| text.map(|text| text.0).filter(|t| !t.is_empty());
        let (text, reasons) = delta.map_or((None, false), |delta| {
            let reasons = filled(delta.reasoning_content).or(filled(delta.reasoning)).is_some();
            (filled(delta.content), reasons)
        });
        Ok(Self { has_content: text.is_some() || reasons, text, usage: wire.usage })
    }
}

/// The sentence in an error's body: OpenAI's envelope, vLLM's, FastAPI's, or the text itself.
pub fn error_in_body(body: &[u8]) -> String {
    let told = serde_json::from_slice::<Value>(body).ok().and_then(|value| {
        let keys = ["error", "message", "detail"];
        keys.iter().find_map(|key| value.get(key).and_then(error_message))
    });
    told.unwrap_or_else(|| shorten(&String::from_utf8_lossy(body)))
}

fn error_message(error: &Value) -> Option<String> {
    match error {
        Value::Null => None,
        Value::String(text) => Some(shorten(text)),
        Value::Object(fields) => match fields.get("message") {
            Some(Value::String(text)) => Some(shorten(text)),
            _ => Some(shorten(&error.to_string())),
        },
        other => Some(shorten(&other.to_string())),
    }
}

/// One line of at most so many characters.
pub fn shorten(text: &str) -> String {
    const CHARACTERS_MAX: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_chunks() {
        #[track_caller]
        fn check(
            json: &str,
            text: Option<&str>,
            has_content: bool,
            usage: Option<(u64, u64, u64)>,
        ) {
            let chunk = Chunk::read(json.as_bytes()).unwrap();
            assert_eq!((chunk.text.as_deref(), chunk.has_content), (text, has_content), "{json}");
            let counts = |usage: Usage| {
                (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens())
            };
            assert_eq!(chunk.usage.map(counts), usage, "{json}");
        }
        let choice = |delta: &str| {
            format!(r#"{{"id":"x","choices":[{{"index":0,"delta":{delta},"logprobs":null}}]}}"#)
        };
        check(&choice(r#"{"role":"assistant","content":""}"#), None, false, None);
        check(&choice(r#"{"role":"assistant","content":null}"#), None, false, None);
        check(&choice("{}"), None, false, None);
        check(&choice("null"), None, false, None);
        check(&choice(r#"{"content":"hi"}"#), Some("hi"), true, None);
        check(&choice(r#"{"content":"a\"\u00e9\n"}"#), Some("a\"é\n"), true, None);
        check(&choice(r#"{"reasoning_content":"hm","content":null}"#), None, true, None);
        check(&choice(r#"{"reasoning":"hm"}"#), None, true, None);
        check(
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}"#,
            None,
            false,
            None,
        );
        check(
            r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#,
            None,
            false,
            Some((5, 2, 0)),
        );
        check(
            r#"{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}"#,
            None,
            false,
            Some((5, 0, 4)),
        );
    }

    #[test]
    fn reads_errors() {
        #[track_caller]
        fn check(json: &str, expected: &str) {
            assert_eq!(Chunk::read(json.as_bytes()).unwrap_err(), expected, "{json}");
        }
        check(r#"{"error":{"message":"no room","type":"server_error"}}"#, "no room");
        check(r#"{"error":"no room"}"#, "no room");
        check(r#"{"error":{"code":5}}"#, r#"{"code":5}"#);
        check(r#"{"object":"error","message":"no\n room","code":500}"#, "no room");
        check(r#"{"detail":"Not Found"}"#, "Not Found");
        check("{}", "{}");
        check(
            "{\"choices\"",
            "unreadable event (EOF while parsing an object at line 1 column 10): {\"choices\"",
        );
    }

    #[test]
    fn reads_error_bodies() {
        assert_eq!(error_in_body(br#"{"error":{"message":"m"}}"#), "m");
        assert_eq!(error_in_body(b"<html>\n no </html>"), "<html> no </html>");
        assert_eq!(error_in_body(b"").as_str(), "");
        assert_eq!(shorten(&"é".repeat(301)), "é".repeat(300) + "…");
    }
}
