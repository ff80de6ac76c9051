//! What both dialects put around their choices: identity and usage.

use serde::{Serialize, Serializer};

use super::parameters::StreamOptions;

/// What every object of one response repeats.
#[derive(Debug, Clone)]
pub struct Head {
    pub id: String,
    /// Unix time.
    pub created_s: u64,
    pub model: String,
    pub system_fingerprint: String,
}

/// Token counts of one request, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// How many of the prompt tokens the prefix cache saved.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// How many of the completion tokens were reasoning.
    pub reasoning_tokens: u32,
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct PromptDetails {
            cached_tokens: u32,
        }
        #[derive(Serialize)]
        struct CompletionDetails {
            reasoning_tokens: u32,
        }
        #[derive(Serialize)]
        struct Body {
            prompt_tokens: u32,
            completion_tokens: u32,
            total_tokens: u64,
            prompt_tokens_details: PromptDetails,
            completion_tokens_details: CompletionDetails,
        }
        Body {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: u64::from(self.prompt_tokens) + u64::from(self.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: self.cached_tokens },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: self.reasoning_tokens,
            },
        }
        .serialize(serializer)
    }
}

/// The object that a response or a chunk of it is; `choices` differs between the dialects.
#[derive(Serialize)]
pub struct Envelope<'a, Choice> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [Choice],
    /// Outer `None`: the key is absent. Inner `None`: it is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl<'a, Choice: Serialize> Envelope<'a, Choice> {
    pub fn new(
        head: &'a Head,
        object: &'static str,
        choices: &'a [Choice],
        usage: Option<Option<Usage>>,
    ) -> Envelope<'a, Choice> {
        let Head { id, created_s, model, system_fingerprint } = head;
        Envelope { id, object, created: *created_s, model, system_fingerprint, choices, usage }
    }

    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

/// What all chunks of one stream begin with, made once: `data: {…,"choices":[`.
#[derive(Debug, Clone)]
pub struct ChunkFrame {
    opening: Vec<u8>,
    options: StreamOptions,
}

impl ChunkFrame {
    pub fn new(head: &Head, object: &'static str, options: StreamOptions) -> ChunkFrame {
        let empty = Envelope::<()>::new(head, object, &[], None).to_json();
        let opening = empty.strip_suffix("]}").expect("the choices come last");
        ChunkFrame { opening: format!("data: {opening}").into_bytes(), options }
    }

    /// One event: a chunk whose choice `write` writes.
    pub fn event(&self, out: &mut Vec<u8>, usage: Usage, write: impl FnOnce(&mut Vec<u8>)) {
        out.extend_from_slice(&self.opening);
        write(out);
        out.push(b']');
        match self.options {
            StreamOptions { include_usage: false, .. } => {}
            StreamOptions { continuous_usage_stats: false, .. } => {
                out.extend_from_slice(b",\"usage\":null");
            }
            _ => self.write_usage(out, usage),
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// The event of a chunk without choices, which carries the usage where that was asked for.
    pub fn usage(&self, out: &mut Vec<u8>, usage: Usage) {
        if self.options.include_usage {
            out.extend_from_slice(&self.opening);
            out.push(b']');
            self.write_usage(out, usage);
            out.extend_from_slice(b"}\n\n");
        }
    }

    fn write_usage(&self, out: &mut Vec<u8>, usage: Usage) {
        out.extend_from_slice(b",\"usage\":");
        write_json(out, &usage);
    }
}

pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs with string keys always serialize")
}

/// Appends a value as JSON.
pub fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("plain structs with string keys always serialize");
}
