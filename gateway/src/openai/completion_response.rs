//! `text_completion`, whole and in chunks.

use serde::Serialize;

use super::logprobs::{CompletionLogprobs, TokenText};
use super::parameters::StreamOptions;
use super::response::{ChunkFrame, Envelope, Head, Usage, write_json};

const OBJECT: &str = "text_completion";

/// A whole choice.
#[derive(Debug, Default)]
pub struct CompletionChoice {
    pub text: String,
    /// Of its tokens, where they were asked for.
    pub logprobs: Option<Vec<TokenText>>,
    pub finish_reason: &'static str,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<CompletionLogprobs<'a>>,
    finish_reason: Option<&'a str>,
}

/// The whole answer to a request without `stream`, as JSON.
pub fn text_completion(head: &Head, choices: &[CompletionChoice], usage: Usage) -> String {
    let choices: Vec<Choice> = choices.iter().enumerate().map(whole_choice).collect();
    Envelope::new(head, OBJECT, &choices, Some(Some(usage))).to_json()
}

fn whole_choice((index, choice): (usize, &CompletionChoice)) -> Choice<'_> {
    let CompletionChoice { text, logprobs, finish_reason } = choice;
    let logprobs = logprobs.as_deref().map(CompletionLogprobs::new);
    Choice { index, text, logprobs, finish_reason: Some(finish_reason) }
}

/// Writes the chunks of one streamed completion as events: for each choice any number of `text`, and
/// `finish`; then `usage`, under the same rules as [`ChatStream`](super::ChatStream).
#[derive(Debug, Clone)]
pub struct CompletionStream {
    frame: ChunkFrame,
}

impl CompletionStream {
    pub fn new(head: &Head, options: StreamOptions) -> CompletionStream {
        CompletionStream { frame: ChunkFrame::new(head, OBJECT, options) }
    }

    /// A piece of a choice, and the logprobs of its tokens if the client asked for them.
    pub fn text(
        &self,
        out: &mut Vec<u8>,
        index: usize,
        text: &str,
        logprobs: Option<&[TokenText]>,
        usage: Usage,
    ) {
        let logprobs = logprobs.map(CompletionLogprobs::new);
        let choice = Choice { index, text, logprobs, finish_reason: None };
        self.frame.event(out, usage, |out| write_json(out, &choice));
    }

    /// A choice's last chunk; its text is empty.
    pub fn finish(&self, out: &mut Vec<u8>, index: usize, reason: &str, usage: Usage) {
        let choice = Choice { index, text: "", logprobs: None, finish_reason: Some(reason) };
        self.frame.event(out, usage, |out| write_json(out, &choice));
    }

    /// The chunk after the last choice's `finish`; nothing unless the client asked for it.
    pub fn usage(&self, out: &mut Vec<u8>, usage: Usage) {
        self.frame.usage(out, usage);
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
            logprob: Some(-0.5),
            top: top.iter().map(alternative).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn whole() {
        let first = TokenText { logprob: None, ..token(0, "é", &[]) };
        let tokens = vec![
            first,
            token(1, "é", &[("é", -0.5), ("b", -1.5), ("b", -2.5)]),
            token(2, "x", &[("y", -0.25)]),
        ];
        let choice = CompletionChoice {
            text: "ééx".into(),
            logprobs: Some(tokens),
            finish_reason: "length",
        };
        let got = text_completion(&head(), &[choice], Usage::default());
        let got: Value = serde_json::from_str(&got).unwrap();
        assert_eq!(got["object"], "text_completion");
        assert_eq!(
            got["choices"],
            json!([{ "index": 0, "text": "ééx", "finish_reason": "length", "logprobs": {
                "tokens": ["é", "é", "x"],
                "token_logprobs": [null, -0.5, -0.5],
                "top_logprobs": [null, { "é": -0.5, "b": -1.5 }, { "y": -0.25, "x": -0.5 }],
                "text_offset": [0, 1, 2],
            } }])
        );
        assert_eq!(got["usage"]["total_tokens"], 0);
    }

    #[test]
    fn chunks() {
        let options = StreamOptions { include_usage: true, continuous_usage_stats: false };
        let stream = CompletionStream::new(&head(), options);
        let event = |write: &dyn Fn(&mut Vec<u8>)| -> Value {
            let mut out = Vec::new();
            write(&mut out);
            let json = out.strip_prefix(b"data: ").and_then(|rest| rest.strip_suffix(b"\n\n"));
            serde_json::from_slice(json.expect("one event")).unwrap()
        };
        for (text, offset) in [("né", 0), ("x", 2), ("y", 3)] {
            let tokens = [token(offset, text, &[])];
            let chunk = event(&|out| stream.text(out, 1, text, Some(&tokens), Usage::default()));
            let choice = &chunk["choices"][0];
            assert_eq!((&choice["index"], &choice["text"]), (&json!(1), &json!(text)));
            assert_eq!(choice["finish_reason"], Value::Null);
            assert_eq!(choice["logprobs"]["text_offset"], json!([offset]));
            assert_eq!(choice["logprobs"]["top_logprobs"], Value::Null);
            assert_eq!(chunk.get("usage"), Some(&Value::Null));
        }
        let last = event(&|out| stream.finish(out, 1, "stop", Usage::default()));
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        let usage = event(&|out| stream.usage(out, Usage::default()));
        assert_eq!(usage["choices"], json!([]));
    }
}
