//! `chat.completion` and `chat.completion.chunk`.

use serde::Serialize;

use super::logprobs::{ChatLogprobs, TokenText};
use super::parameters::StreamOptions;
use super::response::{Envelope, Head, Usage, chunk_usage};

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: &'a str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

/// The whole answer to a request without `stream`, as JSON.
pub fn chat_completion(
    head: &Head,
    text: &str,
    logprobs: Option<&[TokenText]>,
    finish_reason: &str,
    usage: Usage,
) -> String {
    let message = Message { role: "assistant", content: text, refusal: None };
    let logprobs = logprobs.map(ChatLogprobs::new);
    let choice = Choice { index: 0, message, logprobs, finish_reason };
    Envelope::new(head, "chat.completion", &[choice], Some(Some(usage))).to_json()
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// Builds the chunks of one streamed chat answer, each as JSON: `first`, any number of `text`,
/// `finish`, then `usage`. The caller puts `data: ` before each and `[DONE]` after the last.
///
/// The `usage` that the methods take is what has been used so far; it is sent where the options
/// ask for it.
#[derive(Debug, Clone)]
pub struct ChatStream {
    head: Head,
    options: StreamOptions,
}

impl ChatStream {
    pub fn new(head: Head, options: StreamOptions) -> ChatStream {
        ChatStream { head, options }
    }

    /// The chunk that carries the role.
    pub fn first(&self, usage: Usage) -> String {
        let delta = Delta { role: Some("assistant"), content: Some("") };
        self.chunk(delta, None, None, usage)
    }

    /// A piece of the answer, and the logprobs of its tokens if the client asked for them.
    pub fn text(&self, text: &str, logprobs: Option<&[TokenText]>, usage: Usage) -> String {
        self.chunk(Delta { role: None, content: Some(text) }, logprobs, None, usage)
    }

    /// The last chunk with a choice in it; its delta is empty.
    pub fn finish(&self, reason: &str, usage: Usage) -> String {
        self.chunk(Delta::default(), None, Some(reason), usage)
    }

    /// The chunk after `finish`; `None` unless the client asked for it.
    pub fn usage(&self, usage: Usage) -> Option<String> {
        let chunk = || self.envelope(&[], Some(Some(usage)));
        self.options.include_usage.then(chunk)
    }

    fn chunk(
        &self,
        delta: Delta,
        logprobs: Option<&[TokenText]>,
        finish_reason: Option<&str>,
        usage: Usage,
    ) -> String {
        let logprobs = logprobs.map(ChatLogprobs::new);
        let choice = ChunkChoice { index: 0, delta, logprobs, finish_reason };
        self.envelope(&[choice], chunk_usage(self.options, usage))
    }

    fn envelope(&self, choices: &[ChunkChoice], usage: Option<Option<Usage>>) -> String {
        Envelope::new(&self.head, "chat.completion.chunk", choices, usage).to_json()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn head() -> Head {
        Head {
            id: "chatcmpl-1".into(),
            created_s: 7,
            model: "m".into(),
            system_fingerprint: "fp".into(),
        }
    }

    const USAGE: Usage = Usage { prompt_tokens: 5, cached_tokens: 4, completion_tokens: 2 };

    fn usage_json() -> Value {
        json!({ "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
            "prompt_tokens_details": { "cached_tokens": 4 },
            "completion_tokens_details": { "reasoning_tokens": 0 } })
    }

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn whole() {
        let tokens = [TokenText {
            text: "é".into(),
            bytes: vec![0xC3, 0xA9],
            offset_characters: 0,
            logprob: -0.5,
            top: vec![
                ("é".into(), vec![0xC3, 0xA9], -0.5),
                ("b".into(), vec![98], f32::NEG_INFINITY),
            ],
        }];
        let got = chat_completion(&head(), "é", Some(&tokens), "stop", USAGE);
        assert_eq!(
            parse(&got),
            json!({
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
                }],
                "usage": usage_json(),
            })
        );
    }

    #[test]
    fn chunks() {
        #[track_caller]
        fn check(chunk: &str, choices: Value, usage: Option<Value>) {
            let mut expected = json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
                "system_fingerprint": "fp", "choices": choices,
            });
            if let Some(usage) = usage {
                expected["usage"] = usage;
            }
            assert_eq!(parse(chunk), expected);
        }
        for (include_usage, continuous_usage_stats) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let options = StreamOptions { include_usage, continuous_usage_stats };
            let stream = ChatStream::new(head(), options);
            let usage = match (include_usage, continuous_usage_stats) {
                (false, _) => None,
                (true, false) => Some(Value::Null),
                (true, true) => Some(usage_json()),
            };
            let choice = |delta: Value, finish_reason: Value| {
                json!([{ "index": 0, "delta": delta, "logprobs": null,
                    "finish_reason": finish_reason }])
            };
            check(
                &stream.first(USAGE),
                choice(json!({ "role": "assistant", "content": "" }), Value::Null),
                usage.clone(),
            );
            check(
                &stream.text("a\n", None, USAGE),
                choice(json!({ "content": "a\n" }), Value::Null),
                usage.clone(),
            );
            check(&stream.finish("length", USAGE), choice(json!({}), json!("length")), usage);
            match stream.usage(USAGE) {
                Some(chunk) => check(&chunk, json!([]), Some(usage_json())),
                None => assert!(!include_usage),
            }
        }
    }
}
