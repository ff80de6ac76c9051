//! Fields that are known but not done yet. Ignoring one of them would change the answer, so each is
//! refused by name unless its value asks for what happens anyway.

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;

type Harmless = fn(&Value) -> bool;

const BOTH: &[(&str, Harmless)] = &[
    ("use_beam_search", is_false),
    ("prompt_logprobs", never),
    ("logits_processors", is_empty),
    ("bad_words", is_empty),
    ("allowed_token_ids", is_empty),
    ("truncate_prompt_tokens", never),
    ("include_stop_str_in_output", is_false),
    ("skip_special_tokens", is_true),
    ("return_token_ids", is_false),
    ("return_tokens_as_token_ids", is_false),
];

const CHAT: &[(&str, Harmless)] = &[
    ("modalities", is_text_only),
    ("audio", never),
    ("web_search_options", never),
    // The template writes them.
    ("add_special_tokens", is_false),
    ("continue_final_message", is_false),
    ("chat_template", never),
    ("echo", is_false),
];

const COMPLETION: &[(&str, Harmless)] =
    &[("suffix", is_empty), ("prompt_embeds", never), ("add_special_tokens", is_true)];

/// Refuses what a chat request may not ask for yet.
pub fn refuse_for_chat(fields: &Fields) -> Result<(), ApiError> {
    refuse(fields, BOTH)?;
    refuse(fields, CHAT)
}

/// Refuses what a completion request may not ask for yet.
pub fn refuse_for_completion(fields: &Fields) -> Result<(), ApiError> {
    refuse(fields, BOTH)?;
    refuse(fields, COMPLETION)
}

fn refuse(fields: &Fields, table: &[(&str, Harmless)]) -> Result<(), ApiError> {
    for (name, harmless) in table {
        if fields.get(name).is_some_and(|value| !harmless(value)) {
            return Err(ApiError::unsupported(&fields.path(name), &describe(name, fields)));
        }
    }
    Ok(())
}

/// Names the field, and its value where that is short enough to be the reason.
fn describe(name: &str, fields: &Fields) -> String {
    match fields.get(name) {
        Some(value @ Value::Bool(_)) => format!("'{name}' = {value}"),
        Some(Value::String(value)) if value.len() <= 32 => format!("'{name}' = '{value}'"),
        _ => format!("'{name}'"),
    }
}

fn never(_: &Value) -> bool {
    false
}

fn is_false(value: &Value) -> bool {
    value == false
}

fn is_true(value: &Value) -> bool {
    value == true
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|items| items.len() == 1 && items[0] == "text")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(name: &str, harmless: &[Value], refused: &[Value]) {
        let refuse = |value: &Value| {
            let body = json!({ name: value });
            let fields = Fields::of_body(&body).unwrap();
            refuse_for_chat(&fields).and(refuse_for_completion(&fields))
        };
        for value in harmless.iter().chain([&Value::Null]) {
            assert_eq!(refuse(value), Ok(()), "{name} {value}");
        }
        for value in refused {
            let error = refuse(value).unwrap_err();
            assert_eq!(error.code.as_deref(), Some("unsupported_parameter"), "{name} {value}");
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains(name), "{error}");
        }
    }

    #[test]
    fn refuses_by_name_what_would_change_the_answer() {
        check("echo", &[json!(false)], &[json!(true)]);
        check("suffix", &[json!("")], &[json!("end")]);
        check("modalities", &[json!(["text"])], &[json!(["text", "audio"])]);
        check("continue_final_message", &[json!(false)], &[json!(true)]);
        check("prompt_logprobs", &[], &[json!(0), json!(1)]);
        check("reasoning_effort", &[json!("low")], &[]);
        check("metadata", &[json!({ "a": 1 })], &[]);
    }
}
