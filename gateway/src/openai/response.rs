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
            completion_tokens_details: CompletionDetails { reasoning_tokens: 0 },
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

/// The usage of a chunk that carries choices.
pub fn chunk_usage(options: StreamOptions, usage: Usage) -> Option<Option<Usage>> {
    options.include_usage.then_some(options.continuous_usage_stats.then_some(usage))
}

pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs with string keys always serialize")
}
