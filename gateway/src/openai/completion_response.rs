//! `text_completion`, whole and in chunks.

use serde::Serialize;

use super::logprobs::{CompletionLogprobs, TokenText};
use super::parameters::StreamOptions;
use super::response::{Envelope, Head, Usage, chunk_usage};

const OBJECT: &str = "text_completion";

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<CompletionLogprobs<'a>>,
    finish_reason: Option<&'a str>,
}

/// The whole answer to a request without `stream`, as JSON.
pub fn text_completion(
    head: &Head,
    text: &str,
    logprobs: Option<&[TokenText]>,
    finish_reason: &str,
    usage: Usage,
) -> String {
    let logprobs = logprobs.map(CompletionLogprobs::new);
    let choice = Choice { index: 0, text, logprobs, finish_reason: Some(finish_reason) };
    Envelope::new(head, OBJECT, &[choice], Some(Some(usage))).to_json()
}

/// Builds the chunks of one streamed completion, each as JSON: any number of `text`, `finish`,
/// then `usage`, under the same rules as [`ChatStream`](super::ChatStream).
#[derive(Debug, Clone)]
pub struct CompletionStream {
    head: Head,
    options: StreamOptions,
}

impl CompletionStream {
    pub fn new(head: Head, options: StreamOptions) -> CompletionStream {
        CompletionStream { head, options }
    }

    /// A piece of the answer, and the logprobs of its tokens if the client asked for them.
    pub fn text(&self, text: &str, logprobs: Option<&[TokenText]>, usage: Usage) -> String {
        let logprobs = logprobs.map(CompletionLogprobs::new);
        self.chunk(&[Choice { index: 0, text, logprobs, finish_reason: None }], usage)
    }

    /// The last chunk with a choice in it; its text is empty.
    pub fn finish(&self, reason: &str, usage: Usage) -> String {
        let choice = Choice { index: 0, text: "", logprobs: None, finish_reason: Some(reason) };
        self.chunk(&[choice], usage)
    }

    /// The chunk after `finish`; `None` unless the client asked for it.
    pub fn usage(&self, usage: Usage) -> Option<String> {
        let chunk =
            || Envelope::<Choice>::new(&self.head, OBJECT, &[], Some(Some(usage))).to_json();
        self.options.include_usage.then(chunk)
    }

    fn chunk(&self, choices: &[Choice], usage: Usage) -> String {
        Envelope::new(&self.head, OBJECT, choices, chunk_usage(self.options, usage)).to_json()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn head() -> Head {
        Head {
            id: "cmpl-1".into(),
            created_s: 7,
            model: "m".into(),
            system_fingerprint: "fp".into(),
        }
    }

    fn token(offset_characters: usize, text: &str, top: &[(&str, f32)]) -> TokenText {
        let alternative =
            |(text, logprob): &(&str, f32)| (text.to_string(), text.as_bytes().to_vec(), *logprob);
        TokenText {
            text: text.into(),
            bytes: text.as_bytes().to_vec(),
            offset_characters,
            logprob: -0.5,
            top: top.iter().map(alternative).collect(),
        }
    }

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn whole() {
        let tokens = [
            token(0, "é", &[("é", -0.5), ("b", -1.5), ("b", -2.5)]),
            token(1, "x", &[("y", -0.25)]),
        ];
        let got = text_completion(&head(), "éx", Some(&tokens), "length", Usage::default());
        let got = parse(&got);
        assert_eq!(got["object"], "text_completion");
        assert_eq!(
            got["choices"],
            json!([{ "index": 0, "text": "éx", "finish_reason": "length", "logprobs": {
                "tokens": ["é", "x"],
                "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [{ "é": -0.5, "b": -1.5 }, { "y": -0.25, "x": -0.5 }],
                "text_offset": [0, 1],
            } }])
        );
        assert_eq!(got["usage"]["total_tokens"], 0);
    }

    #[test]
    fn chunks() {
        let options = StreamOptions { include_usage: true, continuous_usage_stats: false };
        let stream = CompletionStream::new(head(), options);
        for (text, offset) in [("né", 0), ("x", 2), ("y", 3)] {
            let chunk =
                parse(&stream.text(text, Some(&[token(offset, text, &[])]), Usage::default()));
            let choice = &chunk["choices"][0];
            assert_eq!(choice["text"], text);
            assert_eq!(choice["finish_reason"], Value::Null);
            assert_eq!(choice["logprobs"]["text_offset"], json!([offset]));
            assert_eq!(choice["logprobs"]["top_logprobs"], Value::Null);
            assert_eq!(chunk.get("usage"), Some(&Value::Null));
        }
        let last = parse(&stream.finish("stop", Usage::default()));
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        let usage = parse(&stream.usage(Usage::default()).unwrap());
        assert_eq!(usage["choices"], json!([]));
    }
}
