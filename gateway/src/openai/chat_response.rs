//! `chat.completion` and `chat.completion.chunk`.

use serde::Serialize;
use serde_json::json;

use super::logprobs::{ChatLogprobs, TokenText};
use super::parameters::StreamOptions;
use super::response::{ChunkFrame, Envelope, Head, Usage, write_json};
use crate::tools::Delta;

/// A whole choice: what its deltas add up to.
#[derive(Debug, Default)]
pub struct ChatChoice {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    /// The one call is to be a `function_call`, as it was before there were tools.
    pub is_legacy: bool,
    /// Of the content's tokens, where they were asked for.
    pub logprobs: Option<Vec<TokenText>>,
    pub finish_reason: &'static str,
}

/// A call of a tool.
#[derive(Debug, Default)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

impl ChatChoice {
    /// Adds a delta.
    pub fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Content(text) => self.content.push_str(&text),
            Delta::Reasoning(text) => self.reasoning.push_str(&text),
            Delta::ToolCall { id, name, .. } => {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            Delta::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index as usize) {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: &'a str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    /// Null beside calls, where the model said nothing.
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<Function<'a>>,
}

#[derive(Serialize)]
struct ToolCall<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// The whole answer to a request without `stream`, as JSON.
pub fn chat_completion(head: &Head, choices: &[ChatChoice], usage: Usage) -> String {
    let choices: Vec<Choice> = choices.iter().enumerate().map(whole_choice).collect();
    Envelope::new(head, "chat.completion", &choices, Some(Some(usage))).to_json()
}

fn whole_choice((index, choice): (usize, &ChatChoice)) -> Choice<'_> {
    let says_nothing = choice.content.is_empty() && !choice.calls.is_empty();
    let (tools, functions) = match choice.is_legacy {
        true => (&[][..], choice.calls.as_slice()),
        false => (choice.calls.as_slice(), &[][..]),
    };
    let message = Message {
        role: "assistant",
        content: (!says_nothing).then_some(&choice.content),
        refusal: None,
        reasoning_content: (!choice.reasoning.is_empty()).then_some(&choice.reasoning),
        tool_calls: tools.iter().map(whole_call).collect(),
        function_call: functions.first().map(function_of),
    };
    let logprobs = choice.logprobs.as_deref().map(ChatLogprobs::new);
    Choice { index, message, logprobs, finish_reason: choice.finish_reason }
}

fn whole_call(call: &Call) -> ToolCall<'_> {
    ToolCall { id: &call.id, r#type: "function", function: function_of(call) }
}

fn function_of(call: &Call) -> Function<'_> {
    Function { name: &call.name, arguments: &call.arguments }
}

/// Writes the chunks of one streamed chat answer as events: for each choice `role`, any number of
/// `delta`, and `finish`; then `usage`. The caller puts `[DONE]` after the last.
///
/// The `usage` that the methods take is what has been used so far; it is sent where the options
/// ask for it.
#[derive(Debug, Clone)]
pub struct ChatStream {
    frame: ChunkFrame,
    /// See `ChatChoice`.
    is_legacy: bool,
}

impl ChatStream {
    pub fn new(head: &Head, options: StreamOptions, is_legacy: bool) -> ChatStream {
        ChatStream { frame: ChunkFrame::new(head, "chat.completion.chunk", options), is_legacy }
    }

    /// The chunk that carries a choice's role.
    pub fn role(&self, out: &mut Vec<u8>, choice: usize, usage: Usage) {
        self.chunk(out, choice, usage, |out| {
            out.extend_from_slice(
                br#"{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
            );
        });
    }

    /// A piece of a choice, and the logprobs of its tokens if the client asked for them.
    pub fn delta(
        &self,
        out: &mut Vec<u8>,
        choice: usize,
        delta: &Delta,
        logprobs: Option<&[TokenText]>,
        usage: Usage,
    ) {
        self.chunk(out, choice, usage, |out| {
            write_delta(out, delta, self.is_legacy);
            out.extend_from_slice(br#","logprobs":"#);
            match logprobs {
                Some(tokens) => write_json(out, &ChatLogprobs::new(tokens)),
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(br#","finish_reason":null}"#);
        });
    }

    /// A choice's last chunk; its delta is empty.
    pub fn finish(&self, out: &mut Vec<u8>, choice: usize, reason: &str, usage: Usage) {
        self.chunk(out, choice, usage, |out| {
            out.extend_from_slice(br#"{},"logprobs":null,"finish_reason":"#);
            write_json(out, reason);
            out.push(b'}');
        });
    }

    /// The chunk after the last choice's `finish`; nothing unless the client asked for it.
    pub fn usage(&self, out: &mut Vec<u8>, usage: Usage) {
        self.frame.usage(out, usage);
    }

    fn chunk(
        &self,
        out: &mut Vec<u8>,
        choice: usize,
        usage: Usage,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.frame.event(out, usage, |out| {
            out.extend_from_slice(br#"{"index":"#);
            write_json(out, &choice);
            out.extend_from_slice(br#","delta":"#);
            write(out);
        });
    }
}

fn write_delta(out: &mut Vec<u8>, delta: &Delta, is_legacy: bool) {
    match delta {
        Delta::ToolCall { name, .. } if is_legacy => {
            write_json(out, &json!({ "function_call": { "name": name, "arguments": "" } }));
        }
        Delta::Arguments { text, .. } if is_legacy => {
            write_json(out, &json!({ "function_call": { "arguments": text } }));
        }
        Delta::Content(text) => write_text(out, br#"{"content":"#, text),
        Delta::Reasoning(text) => write_text(out, br#"{"reasoning_content":"#, text),
        Delta::ToolCall { index, id, name } => write_json(
            out,
            &json!({ "tool_calls": [{ "index": index, "id": id, "type": "function",
                "function": { "name": name, "arguments": "" } }] }),
        ),
        Delta::Arguments { index, text } => write_json(
            out,
            &json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] }),
        ),
    }
}

fn write_text(out: &mut Vec<u8>, opening: &[u8], text: &str) {
    out.extend_from_slice(opening);
    write_json(out, text);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn head() -> Head {
        Head {
            id: "chatcmpl-1".into(),
            created_s: 7,
            model: "m".into(),
            system_fingerprint: "fp".into(),
        }
    }

    const USAGE: Usage =
        Usage { prompt_tokens: 5, cached_tokens: 4, completion_tokens: 2, reasoning_tokens: 1 };

    fn usage_json() -> Value {
        json!({ "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
            "prompt_tokens_details": { "cached_tokens": 4 },
            "completion_tokens_details": { "reasoning_tokens": 1 } })
    }

    fn call() -> Delta {
        Delta::ToolCall { index: 0, id: "call_1".into(), name: "f".into() }
    }

    fn arguments(text: &str) -> Delta {
        Delta::Arguments { index: 0, text: text.into() }
    }

    #[test]
    fn whole() {
        let token = TokenText {
            text: "é".into(),
            bytes: vec![0xC3, 0xA9],
            logprob: Some(-0.5),
            top: vec![
                ("é".into(), vec![0xC3, 0xA9], -0.5),
                ("b".into(), vec![98], f32::NEG_INFINITY),
            ],
            ..Default::default()
        };
        let says = ChatChoice {
            content: "é".into(),
            logprobs: Some(vec![token]),
            finish_reason: "stop",
            ..Default::default()
        };
        let mut calls = ChatChoice { finish_reason: "tool_calls", ..Default::default() };
        for delta in [Delta::Reasoning("hm".into()), call(), arguments("{\"a\""), arguments(": 1}")]
        {
            calls.add(delta);
        }
        let got = chat_completion(&head(), &[says, calls], USAGE);
        let expected = json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
            "system_fingerprint": "fp",
            "choices": [{
                "index": 0,
                "message": { "role": "assistant", "content": "é", "refusal": null },
                "logprobs": { "refusal": null, "content": [{
                    "token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
                        { "token": "é", "logprob": -0.5, "bytes": [195, 169] },
                        { "token": "b", "logprob": -9999.0, "bytes": [98] },
                    ],
                }] },
                "finish_reason": "stop",
            }, {
                "index": 1,
                "message": { "role": "assistant", "content": null, "refusal": null,
                    "reasoning_content": "hm", "tool_calls": [{ "id": "call_1",
                        "type": "function",
                        "function": { "name": "f", "arguments": "{\"a\": 1}" } }] },
                "logprobs": null,
                "finish_reason": "tool_calls",
            }],
            "usage": usage_json(),
        });
        assert_eq!(serde_json::from_str::<Value>(&got).unwrap(), expected);
    }

    #[test]
    fn chunks() {
        #[track_caller]
        fn check(write: impl FnOnce(&mut Vec<u8>), choices: Value, usage: Option<Value>) {
            let mut expected = json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
                "system_fingerprint": "fp", "choices": choices,
            });
            if let Some(usage) = usage {
                expected["usage"] = usage;
            }
            let mut out = Vec::new();
            write(&mut out);
            let json = out.strip_prefix(b"data: ").and_then(|rest| rest.strip_suffix(b"\n\n"));
            let chunk: Value = serde_json::from_slice(json.expect("one event")).unwrap();
            assert_eq!(chunk, expected);
        }
        for (include_usage, continuous_usage_stats) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let options = StreamOptions { include_usage, continuous_usage_stats };
            let stream = ChatStream::new(&head(), options, false);
            let usage = match (include_usage, continuous_usage_stats) {
                (false, _) => None,
                (true, false) => Some(Value::Null),
                (true, true) => Some(usage_json()),
            };
            let choice = |delta: Value, finish_reason: Value| {
                json!([{ "index": 3, "delta": delta, "logprobs": null,
                    "finish_reason": finish_reason }])
            };
            let opening = json!({ "role": "assistant", "content": "" });
            check(|out| stream.role(out, 3, USAGE), choice(opening, Value::Null), usage.clone());
            for (delta, expected) in [
                (Delta::Content("a\n".into()), json!({ "content": "a\n" })),
                (Delta::Reasoning("hm".into()), json!({ "reasoning_content": "hm" })),
                (
                    call(),
                    json!({ "tool_calls": [{ "index": 0, "id": "call_1", "type": "function",
                        "function": { "name": "f", "arguments": "" } }] }),
                ),
                (
                    arguments("{"),
                    json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{" } }] }),
                ),
            ] {
                check(
                    |out| stream.delta(out, 3, &delta, None, USAGE),
                    choice(expected, Value::Null),
                    usage.clone(),
                );
            }
            check(
                |out| stream.finish(out, 3, "length", USAGE),
                choice(json!({}), json!("length")),
                usage,
            );
            match include_usage {
                true => check(|out| stream.usage(out, USAGE), json!([]), Some(usage_json())),
                false => {
                    let mut out = Vec::new();
                    stream.usage(&mut out, USAGE);
                    assert_eq!(out, b"");
                }
            }
        }
    }

    #[test]
    fn functions_as_they_were_before_tools() {
        let mut choice =
            ChatChoice { is_legacy: true, finish_reason: "function_call", ..Default::default() };
        let stream = ChatStream::new(&head(), StreamOptions::default(), true);
        let mut out = Vec::new();
        for delta in [call(), arguments("{}")] {
            stream.delta(&mut out, 0, &delta, None, USAGE);
            choice.add(delta);
        }
        let whole: Value =
            serde_json::from_str(&chat_completion(&head(), &[choice], USAGE)).unwrap();
        assert_eq!(
            whole["choices"][0]["message"],
            json!({ "role": "assistant", "content": null, "refusal": null,
                "function_call": { "name": "f", "arguments": "{}" } })
        );
        let chunks = String::from_utf8(out).unwrap();
        let deltas: Vec<Value> = chunks
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|json| serde_json::from_str::<Value>(json).unwrap()["choices"][0]["delta"].clone())
            .collect();
        assert_eq!(
            deltas,
            [
                json!({ "function_call": { "name": "f", "arguments": "" } }),
                json!({ "function_call": { "arguments": "{}" } }),
            ]
        );
    }
}
