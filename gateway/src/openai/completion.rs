//! `POST /v1/completions`: a prompt without roles.

use serde_json::Value;

use super::constraint::Constraint;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::{Parameters, token_ids};
use super::unsupported::refuse_for_completion;

/// Prompts of one request.
const PROMPTS_MAX: usize = 2048;

/// A validated text completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub parameters: Parameters,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// What the text of the answers must match.
    pub constraint: Option<Constraint>,
}

/// A prompt and where it stands in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// `prompt`, or `prompt[3]`.
    pub path: String,
    pub content: PromptContent,
}

/// Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptContent {
    Text(String),
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Validates a request body; the error names the first field that is wrong.
    pub fn parse(body: &Value) -> Result<CompletionRequest, ApiError> {
        let fields = Fields::of_body(body)?;
        refuse_for_completion(&fields)?;
        let parameters = Parameters::of_completion(&fields)?;
        let (prompts, constraint) = (prompts(fields.require("prompt")?)?, Constraint::of(&fields)?);
        Ok(CompletionRequest { parameters, prompts, constraint })
    }
}

fn prompts(value: &Value) -> Result<Vec<Prompt>, ApiError> {
    match value {
        Value::Array(items) => match items.as_slice() {
            [] => Err(ApiError::empty_array("prompt")),
            [Value::Number(_), ..] => Ok(vec![prompt(value, "prompt")?]),
            several if several.len() > PROMPTS_MAX => {
                Err(ApiError::array_too_long("prompt", PROMPTS_MAX, several.len()))
            }
            several => {
                let read = |(index, item)| prompt(item, &format!("prompt[{index}]"));
                several.iter().enumerate().map(read).collect()
            }
        },
        _ => Ok(vec![prompt(value, "prompt")?]),
    }
}

/// A string, or a list of token ids.
fn prompt(value: &Value, path: &str) -> Result<Prompt, ApiError> {
    let content = match value {
        Value::String(text) if text.is_empty() => {
            let message = format!("Invalid '{path}': the prompt cannot be an empty string.");
            return Err(ApiError::invalid_value(path, message));
        }
        Value::String(text) => PromptContent::Text(text.clone()),
        Value::Array(items) if items.is_empty() => return Err(ApiError::empty_array(path)),
        Value::Array(items) => PromptContent::Tokens(token_ids(items, path)?),
        other => return Err(wrong_type(path, "a string or an array", other)),
    };
    Ok(Prompt { path: path.to_owned(), content })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(value: Value, expected: Result<&[(&str, PromptContent)], (&str, &str)>) {
        let got = CompletionRequest::parse(&json!({ "model": "m", "prompt": value }));
        let got = got.map(|request| request.prompts);
        let got = got.map_err(|error| (error.param.unwrap(), error.code.unwrap()));
        let prompt = |(path, content): &(&str, PromptContent)| Prompt {
            path: (*path).into(),
            content: content.clone(),
        };
        let expected = expected.map(|prompts| prompts.iter().map(prompt).collect::<Vec<_>>());
        assert_eq!(got, expected.map_err(|(param, code)| (param.into(), code.into())), "{value}");
    }

    #[test]
    fn reads_prompts() {
        let text = |text: &str| PromptContent::Text(text.into());
        let tokens = |tokens: &[u32]| PromptContent::Tokens(tokens.to_vec());
        check(json!("hi"), Ok(&[("prompt", text("hi"))]));
        check(json!(["hi"]), Ok(&[("prompt[0]", text("hi"))]));
        check(json!([1, 2.0]), Ok(&[("prompt", tokens(&[1, 2]))]));
        check(json!([[1, 2]]), Ok(&[("prompt[0]", tokens(&[1, 2]))]));
        check(json!(["a", "b"]), Ok(&[("prompt[0]", text("a")), ("prompt[1]", text("b"))]));
        check(json!([[1], "b"]), Ok(&[("prompt[0]", tokens(&[1])), ("prompt[1]", text("b"))]));
        check(json!(null), Err(("prompt", "missing_required_parameter")));
        check(json!(""), Err(("prompt", "invalid_value")));
        check(json!([""]), Err(("prompt[0]", "invalid_value")));
        check(json!([]), Err(("prompt", "empty_array")));
        check(json!([[]]), Err(("prompt[0]", "empty_array")));
        check(json!(["a", 2]), Err(("prompt[1]", "invalid_type")));
        check(json!(vec!["a"; 2049]), Err(("prompt", "array_above_max_length")));
        check(json!(5), Err(("prompt", "invalid_type")));
        check(json!([1, "a"]), Err(("prompt[1]", "invalid_type")));
        check(json!([1, -1]), Err(("prompt[1]", "integer_below_min_value")));
        check(json!([1, 4294967296u64]), Err(("prompt[1]", "integer_above_max_value")));
    }
}
