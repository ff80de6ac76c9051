//! `POST /tokenize` and `/detokenize`, in the shape that vLLM gave them.

use serde::Serialize;
use serde_json::Value;

use super::chat::messages;
use super::error::ApiError;
use super::fields::Fields;
use super::parameters::token_ids;
use super::response::to_json;
use super::template_variables::template_variables;
use super::tools::Tools;
use crate::text::TemplateVariables;

/// A validated request for tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    /// May be left out where there is only one.
    pub model: Option<String>,
    pub text: Text,
    /// Whether the tokenizer puts its own tokens around the text.
    pub add_special_tokens: bool,
    /// Whether the tokens' spellings are wanted too.
    pub return_token_strs: bool,
}

/// What is to be tokenized.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    Prompt(String),
    Messages {
        /// At least one, as of a chat request.
        messages: Vec<Value>,
        /// As the template wants them.
        tools: Option<Vec<Value>>,
        variables: TemplateVariables,
    },
}

/// A validated request for text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// May be left out where there is only one.
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl TokenizeRequest {
    /// Validates a request body; the error names the first field that is wrong.
    pub fn parse(body: &Value) -> Result<TokenizeRequest, ApiError> {
        let fields = Fields::of_body(body)?;
        let text = text(&fields)?;
        // A template writes the special tokens itself.
        let by_default = matches!(text, Text::Prompt(_));
        Ok(TokenizeRequest {
            model: fields.string("model")?.map(str::to_owned),
            text,
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(by_default),
            return_token_strs: fields.boolean("return_token_strs")?.unwrap_or(false),
        })
    }
}

/// What only messages have is validated beside a prompt too.
fn text(fields: &Fields) -> Result<Text, ApiError> {
    let tools = Tools::of_chat(fields)?.for_template();
    let variables = template_variables(fields)?;
    match (fields.string("prompt")?, fields.get("messages")) {
        (Some(_), Some(_)) => {
            let message = "Invalid 'messages': they cannot be given beside 'prompt'.";
            Err(ApiError::invalid_value("messages", message))
        }
        (Some(prompt), None) => Ok(Text::Prompt(prompt.to_owned())),
        (None, Some(_)) => Ok(Text::Messages { messages: messages(fields)?, tools, variables }),
        (None, None) => Err(ApiError::missing("prompt")),
    }
}

impl DetokenizeRequest {
    /// Validates a request body; the error names the first field that is wrong.
    pub fn parse(body: &Value) -> Result<DetokenizeRequest, ApiError> {
        let fields = Fields::of_body(body)?;
        let model = fields.string("model")?.map(str::to_owned);
        let tokens = fields.array("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
        Ok(DetokenizeRequest { model, tokens: token_ids(tokens, "tokens")? })
    }
}

/// The answer to `POST /tokenize`, as JSON.
pub fn tokenized(context_tokens: usize, tokens: &[u32], spellings: Option<Vec<String>>) -> String {
    #[derive(Serialize)]
    struct Tokenized<'a> {
        count: usize,
        max_model_len: usize,
        tokens: &'a [u32],
        token_strs: Option<Vec<String>>,
    }
    to_json(&Tokenized {
        count: tokens.len(),
        max_model_len: context_tokens,
        tokens,
        token_strs: spellings,
    })
}

/// The answer to `POST /detokenize`, as JSON.
pub fn detokenized(text: &str) -> String {
    #[derive(Serialize)]
    struct Detokenized<'a> {
        prompt: &'a str,
    }
    to_json(&Detokenized { prompt: text })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_requests() {
        #[track_caller]
        fn check(body: Value, text: Text, special: bool, spelled: bool) {
            let request = TokenizeRequest::parse(&body).unwrap();
            let model = body["model"].as_str().map(str::to_owned);
            let (add_special_tokens, return_token_strs) = (special, spelled);
            let expected = TokenizeRequest { model, text, add_special_tokens, return_token_strs };
            assert_eq!(request, expected);
        }
        let prompt = |text: &str| Text::Prompt(text.to_owned());
        let message = json!({ "role": "user", "content": "hi" });
        let chat = |add_generation_prompt| {
            let messages = vec![message.clone()];
            let variables =
                TemplateVariables { add_generation_prompt, ..TemplateVariables::default() };
            Text::Messages { messages, tools: None, variables }
        };
        check(json!({ "model": "m", "prompt": "hi" }), prompt("hi"), true, false);
        check(json!({ "prompt": "", "return_token_strs": true }), prompt(""), true, true);
        check(json!({ "prompt": "hi", "add_special_tokens": false }), prompt("hi"), false, false);
        check(json!({ "messages": [message], "tools": [] }), chat(true), false, false);
        check(
            json!({ "messages": [message], "add_generation_prompt": false }),
            chat(false),
            false,
            false,
        );
    }

    #[test]
    fn refuses_what_is_wrong() {
        #[track_caller]
        fn check(error: ApiError, param: &str, code: &str) {
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{error}");
        }
        let tokenize = |body: Value| TokenizeRequest::parse(&body).unwrap_err();
        let detokenize = |body: Value| DetokenizeRequest::parse(&body).unwrap_err();
        check(tokenize(json!({})), "prompt", "missing_required_parameter");
        check(tokenize(json!({ "prompt": 1 })), "prompt", "invalid_type");
        check(tokenize(json!({ "prompt": "a", "messages": [] })), "messages", "invalid_value");
        check(tokenize(json!({ "messages": [] })), "messages", "empty_array");
        check(
            tokenize(json!({ "prompt": "a", "add_special_tokens": 1 })),
            "add_special_tokens",
            "invalid_type",
        );
        check(
            tokenize(json!({ "prompt": "a", "tools": [{ "type": "function" }] })),
            "tools[0].function",
            "missing_required_parameter",
        );
        check(detokenize(json!({})), "tokens", "missing_required_parameter");
        check(detokenize(json!({ "tokens": [-1] })), "tokens[0]", "integer_below_min_value");
        check(detokenize(json!({ "tokens": [], "model": 1 })), "model", "invalid_type");
    }

    #[test]
    fn writes_answers() {
        let expected = r#"{"count":2,"max_model_len":9,"tokens":[5,6],"token_strs":null}"#;
        assert_eq!(tokenized(9, &[5, 6], None), expected);
        let expected = r#"{"count":1,"max_model_len":9,"tokens":[5],"token_strs":["Ġa"]}"#;
        assert_eq!(tokenized(9, &[5], Some(vec!["Ġa".into()])), expected);
        assert_eq!(detokenized("a \"b\""), r#"{"prompt":"a \"b\""}"#);
    }
}
