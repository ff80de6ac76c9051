//! The body of a chat completion request.

use bytes::Bytes;
use serde_json::Value;

/// What every request says beside its messages.
#[derive(Clone, Debug)]
pub struct RequestSettings {
    pub model: String,
    pub output_tokens: u32,
    pub ignore_eos: bool,
    pub seed: u64,
}

impl RequestSettings {
    /// The body. `messages` are JSON objects with commas between them.
    pub fn body(&self, messages: &str) -> Bytes {
        let model = Value::from(self.model.as_str());
        let ignore_eos = if self.ignore_eos { r#","ignore_eos":true"# } else { "" };
        let (max_tokens, seed) = (self.output_tokens, self.seed);
        let sampling =
            format!(r#""max_tokens":{max_tokens},"temperature":0,"seed":{seed}{ignore_eos}"#);
        let stream = r#""stream":true,"stream_options":{"include_usage":true}"#;
        format!(r#"{{"model":{model},{sampling},{stream},"messages":[{messages}]}}"#).into()
    }
}

/// A message as JSON.
pub fn message(role: &str, content: &str) -> String {
    format!(r#"{{"role":"{role}","content":{}}}"#, Value::from(content))
}
