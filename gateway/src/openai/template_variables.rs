//! What a chat request tells the template beside its messages and tools.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use crate::text::TemplateVariables;

const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh"];
/// What has a field of its own, or is the model's.
const RESERVED: &[&str] =
    &["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"];
const DOCUMENTS_MAX: usize = 1024;

/// `chat_template_kwargs`, `documents`, `add_generation_prompt` and `reasoning_effort`. Templates that
/// can leave reasoning out do so for the effort `none`.
pub(super) fn template_variables(fields: &Fields) -> Result<TemplateVariables, ApiError> {
    let mut variables = TemplateVariables {
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
        documents: documents(fields)?,
        ..TemplateVariables::default()
    };
    if let Some(effort) = fields.string("reasoning_effort")? {
        if !EFFORTS.contains(&effort) {
            return Err(ApiError::not_one_of("reasoning_effort", effort, EFFORTS));
        }
        variables.others.insert("reasoning_effort".into(), json!(effort));
        if effort == "none" {
            for name in ["enable_thinking", "thinking"] {
                variables.others.insert(name.into(), json!(false));
            }
        }
    }
    if let Some(arguments) = fields.object("chat_template_kwargs")? {
        for (name, value) in arguments.entries() {
            if RESERVED.contains(&name.as_str()) {
                let path = arguments.path(name);
                let message = format!("Invalid '{path}': a template gets this from elsewhere.");
                return Err(ApiError::invalid_value(&path, message));
            }
            variables.others.insert(name.clone(), value.clone());
        }
    }
    Ok(variables)
}

fn documents(fields: &Fields) -> Result<Option<Vec<Value>>, ApiError> {
    let documents = fields.array("documents")?.filter(|documents| !documents.is_empty());
    if let Some(documents) = documents {
        if documents.len() > DOCUMENTS_MAX {
            return Err(ApiError::array_too_long("documents", DOCUMENTS_MAX, documents.len()));
        }
        for (index, document) in documents.iter().enumerate() {
            Fields::of(document, &format!("documents[{index}]"))?;
        }
    }
    Ok(documents.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<TemplateVariables, ApiError> {
        template_variables(&Fields::of_body(&body).unwrap())
    }

    #[test]
    fn reads_what_templates_are_told() {
        assert_eq!(parse(json!({})).unwrap(), TemplateVariables::default());
        let variables = parse(json!({
            "add_generation_prompt": false, "documents": [{ "text": "a" }],
            "reasoning_effort": "none", "chat_template_kwargs": { "thinking": true, "x": [1] } }));
        let variables = variables.unwrap();
        assert!(!variables.add_generation_prompt);
        assert_eq!(variables.documents, Some(vec![json!({ "text": "a" })]));
        assert_eq!(
            Value::Object(variables.others),
            json!({ "reasoning_effort": "none", "enable_thinking": false, "thinking": true, "x": [1] })
        );
    }

    #[test]
    fn refuses_what_is_wrong_by_path() {
        #[track_caller]
        fn check(body: Value, param: &str, code: &str) {
            let error = parse(body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{error}");
        }
        check(json!({ "reasoning_effort": "much" }), "reasoning_effort", "invalid_value");
        check(json!({ "documents": [1] }), "documents[0]", "invalid_type");
        check(json!({ "chat_template_kwargs": [] }), "chat_template_kwargs", "invalid_type");
        check(
            json!({ "chat_template_kwargs": { "messages": [] } }),
            "chat_template_kwargs.messages",
            "invalid_value",
        );
    }
}
