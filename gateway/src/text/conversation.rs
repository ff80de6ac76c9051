//! Conversations as the templates of some families want them: where those differ from what most expect,
//! the messages are changed rather than refused.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::python_json::to_text;

/// Mistral's templates insist on ids of so many letters and digits.
const SHORT_ID_CHARACTERS: usize = 9;

/// What a template wants to be different, found in its source.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    has_short_ids: bool,
    /// Reasoning beside a call is called `thinking`.
    has_thinking: bool,
}

/// What may be changed when a template fails. Some add arguments to a string, which is for those that
/// are strings themselves; some add the content that a call is without.
#[derive(Debug, Clone, Copy)]
pub struct Relaxation {
    arguments_are_text: bool,
    content_is_text: bool,
}

/// In the order in which they are tried.
pub const RELAXATIONS: [Relaxation; 3] = [
    Relaxation { arguments_are_text: true, content_is_text: false },
    Relaxation { arguments_are_text: false, content_is_text: true },
    Relaxation { arguments_are_text: true, content_is_text: true },
];

impl Habits {
    /// Those of a template.
    pub fn of(source: &str) -> Self {
        Self {
            has_short_ids: source.contains("[TOOL_CALLS]"),
            has_thinking: source.contains("<|channel|>") && source.contains("thinking"),
        }
    }

    /// The messages as this template wants them.
    pub fn adapt<'a>(&self, messages: &'a [Value]) -> Cow<'a, [Value]> {
        let has_calls = |message: &Value| {
            message.get("tool_calls").is_some() || message.get("tool_call_id").is_some()
        };
        if !(self.has_short_ids || self.has_thinking) || !messages.iter().any(has_calls) {
            return Cow::Borrowed(messages);
        }
        let mut messages = messages.to_vec();
        for message in messages.iter_mut().filter(|message| has_calls(message)) {
            if self.has_short_ids {
                shorten_ids(message);
            }
            if self.has_thinking {
                name_thinking(message);
            }
        }
        Cow::Owned(messages)
    }
}

fn shorten_ids(message: &mut Value) {
    let shorten = |id: &mut Value| {
        if let Some(short) = id.as_str().map(short_id) {
            *id = json!(short);
        }
    };
    if let Some(id) = message.get_mut("tool_call_id") {
        shorten(id);
    }
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(id) = call.get_mut("id") {
            shorten(id);
        }
    }
}

/// The last letters and digits of an id, which are random in those that are made here.
fn short_id(id: &str) -> String {
    let plain: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let taken = &plain[plain.len().saturating_sub(SHORT_ID_CHARACTERS)..];
    let missing = SHORT_ID_CHARACTERS - taken.len();
    std::iter::repeat_n('0', missing).chain(taken.iter().copied()).collect()
}

/// Only without content: those templates refuse both.
fn name_thinking(message: &mut Value) {
    let has_content = message["content"].as_str().is_some_and(|content| !content.is_empty());
    if let Some(reasoning) = message.get("reasoning_content").cloned()
        && !has_content
        && message.get("thinking").is_none()
    {
        message["thinking"] = reasoning;
    }
}

impl Relaxation {
    /// `None` where it changes nothing.
    pub fn apply(&self, messages: &[Value]) -> Option<Vec<Value>> {
        let mut changed = false;
        let mut messages = messages.to_vec();
        for message in &mut messages {
            if self.content_is_text && message.get("content").is_some_and(Value::is_null) {
                message["content"] = json!("");
                changed = true;
            }
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            for call in calls.into_iter().flatten().filter(|_| self.arguments_are_text) {
                let arguments = call.pointer_mut("/function/arguments");
                if let Some(arguments) = arguments.filter(|arguments| arguments.is_object()) {
                    *arguments = json!(to_text(arguments));
                    changed = true;
                }
            }
        }
        changed.then_some(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_nine_letters_and_digits() {
        for (id, short) in [
            ("call_aB3dE5gH7jK9mN1pQ3sT5vW7", "N1pQ3sT5vW7"),
            ("c-1", "0000000c1"),
            ("", "000000000"),
            ("abcdefghi", "abcdefghi"),
        ] {
            assert!(short.ends_with(&short_id(id)), "{id}");
            assert_eq!(short_id(id).len(), 9, "{id}");
        }
    }
}
