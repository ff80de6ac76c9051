//! `POST /v1/completions`: a prompt without roles.

use serde_json::Value;

use super::constraint::Constraint;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::{Parameters, token_ids};
use super::unsupported::refuse_for_completion;

/// A validated text completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub parameters: Parameters,
    pub prompt: Prompt,
    /// What the text of the answer must match.
    pub constraint: Option<Constraint>,
}

/// Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Validates a request body; the error names the first field that is wrong.
    pub fn parse(body: &Value) -> Result<CompletionRequest, ApiError> {
        let fields = Fields::of_body(body)?;
        refuse_for_completion(&fields)?;
        let parameters = Parameters::of_completion(&fields)?;
        let (prompt, constraint) = (prompt(fields.require("prompt")?)?, Constraint::of(&fields)?);
        Ok(CompletionRequest { parameters, prompt, constraint })
    }
}

fn prompt(value: &Value) -> Result<Prompt, ApiError> {
    match value {
        Value::Array(items) => match items.as_slice() {
            [] => Err(ApiError::empty_array("prompt")),
            [Value::Number(_), ..] => Ok(Prompt::Tokens(token_ids(items, "prompt")?)),
            [only] => single_prompt(only, "prompt[0]"),
            _ => Err(ApiError::unsupported("prompt", "'prompt' with several prompts")),
        },
        _ => single_prompt(value, "prompt"),
    }
}

/// A string, or a list of token ids inside of the list of prompts.
fn single_prompt(value: &Value, path: &str) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) if text.is_empty() => {
            let message = format!("Invalid '{path}': the prompt cannot be an empty string.");
            Err(ApiError::invalid_value(path, message))
        }
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(items) if items.is_empty() => Err(ApiError::empty_array(path)),
        Value::Array(items) => Ok(Prompt::Tokens(token_ids(items, path)?)),
        other => Err(wrong_type(path, "a string or an array", other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(prompt: Value, expected: Result<Prompt, (&str, &str)>) {
        let got = CompletionRequest::parse(&json!({ "model": "m", "prompt": prompt }));
        let got = got.map(|request| request.prompt);
        let got = got.map_err(|error| (error.param.unwrap(), error.code.unwrap()));
        assert_eq!(got, expected.map_err(|(param, code)| (param.into(), code.into())), "{prompt}");
    }

    #[test]
    fn reads_prompts() {
        check(json!("hi"), Ok(Prompt::Text("hi".into())));
        check(json!(["hi"]), Ok(Prompt::Text("hi".into())));
        check(json!([1, 2.0]), Ok(Prompt::Tokens(vec![1, 2])));
        check(json!([[1, 2]]), Ok(Prompt::Tokens(vec![1, 2])));
        check(json!(null), Err(("prompt", "missing_required_parameter")));
        check(json!(""), Err(("prompt", "invalid_value")));
        check(json!([""]), Err(("prompt[0]", "invalid_value")));
        check(json!([]), Err(("prompt", "empty_array")));
        check(json!([[]]), Err(("prompt[0]", "empty_array")));
        check(json!(["a", "b"]), Err(("prompt", "unsupported_parameter")));
        check(json!([[1], [2]]), Err(("prompt", "unsupported_parameter")));
        check(json!(5), Err(("prompt", "invalid_type")));
        check(json!([1, "a"]), Err(("prompt[1]", "invalid_type")));
        check(json!([1, -1]), Err(("prompt[1]", "integer_below_min_value")));
        check(json!([1, 4294967296u64]), Err(("prompt[1]", "integer_above_max_value")));
    }
}
