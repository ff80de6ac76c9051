//! `POST /v1/chat/completions`: messages, validated and brought into the shape that chat templates
//! are written for.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::constraint::Constraint;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::Parameters;
use super::template_variables::template_variables;
use super::tools::Tools;
use super::unsupported::refuse_for_chat;
use crate::text::TemplateVariables;

/// Far above OpenAI's own limit.
const MESSAGES_MAX: usize = 8192;
const ROLES: &[&str] = &["developer", "system", "user", "assistant", "tool", "function"];

/// A validated chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub parameters: Parameters,
    /// At least one. Each has a `role` and a `content`, which is a string, or null beside
    /// `tool_calls`.
    pub messages: Vec<Value>,
    pub tools: Tools,
    /// What the text of the answer must match.
    pub constraint: Option<Constraint>,
    /// What the template is told beside.
    pub variables: TemplateVariables,
}

impl ChatRequest {
    /// Validates a request body; the error names the first field that is wrong.
    pub fn parse(body: &Value) -> Result<ChatRequest, ApiError> {
        let fields = Fields::of_body(body)?;
        refuse_for_chat(&fields)?;
        let parameters = Parameters::of_chat(&fields)?;
        let (tools, constraint) = (Tools::of_chat(&fields)?, Constraint::of(&fields)?);
        let (messages, variables) = (messages(&fields)?, template_variables(&fields)?);
        Ok(ChatRequest { parameters, messages, tools, constraint, variables })
    }
}

/// The messages of a request, as templates want them. At least one.
pub(super) fn messages(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    let messages = fields.array("messages")?.ok_or_else(|| ApiError::missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::empty_array("messages"));
    }
    if messages.len() > MESSAGES_MAX {
        return Err(ApiError::array_too_long("messages", MESSAGES_MAX, messages.len()));
    }
    let read = |(index, value)| message(&Fields::of(value, &format!("messages[{index}]"))?);
    let mut messages: Vec<_> = messages.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    name_results(&mut messages);
    Ok(messages)
}

/// Some templates want to know whose result a message is.
fn name_results(messages: &mut [Value]) {
    let mut names: HashMap<String, Value> = HashMap::new();
    for message in messages {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            if let Some(id) = call["id"].as_str() {
                names.insert(id.to_owned(), call["function"]["name"].clone());
            }
        }
        let name = message["tool_call_id"].as_str().and_then(|id| names.get(id));
        if let Some(name) = name.filter(|_| message.get("name").is_none()) {
            message["name"] = name.clone();
        }
    }
}

fn message(fields: &Fields) -> Result<Value, ApiError> {
    let role = fields.require_string("role")?;
    if !ROLES.contains(&role) {
        return Err(ApiError::not_one_of(&fields.path("role"), role, ROLES));
    }
    refuse_parts_of_message(fields)?;
    let mut message = Map::new();
    // Templates know one name of each role only.
    let known = match role {
        "developer" => "system",
        "function" => "tool",
        role => role,
    };
    message.insert("role".into(), json!(known));
    let tool_calls = match role {
        "assistant" => tool_calls(fields)?.or(function_call(fields)?),
        _ => None,
    };
    message.insert("content".into(), content(fields, tool_calls.is_some())?);
    if let Some(tool_calls) = tool_calls {
        message.insert("tool_calls".into(), tool_calls);
    }
    for (name, required) in [
        ("name", role == "function"),
        ("tool_call_id", role == "tool"),
        ("reasoning_content", false),
    ] {
        let text = fields.string(name)?;
        if required && text.is_none() {
            return Err(ApiError::missing(&fields.path(name)));
        }
        message.extend(text.map(|text| (name.to_owned(), json!(text))));
    }
    if role == "function" {
        let id = function_call_id(fields.require_string("name")?);
        message.insert("tool_call_id".into(), json!(id));
    }
    Ok(Value::Object(message))
}

fn refuse_parts_of_message(fields: &Fields) -> Result<(), ApiError> {
    if fields.get("audio").is_some() {
        let path = fields.path("audio");
        return Err(ApiError::unsupported(&path, &format!("'{path}'")));
    }
    Ok(())
}

fn content(fields: &Fields, may_be_absent: bool) -> Result<Value, ApiError> {
    let path = fields.path("content");
    match fields.get("content") {
        None if may_be_absent => Ok(Value::Null),
        None => Err(ApiError::missing(&path)),
        Some(Value::String(text)) => Ok(json!(text)),
        Some(Value::Array(parts)) if parts.is_empty() => Err(ApiError::empty_array(&path)),
        Some(Value::Array(parts)) => Ok(json!(joined_parts(parts, &path)?)),
        Some(other) => Err(wrong_type(&path, "a string or an array of content parts", other)),
    }
}

/// Templates want one string; parts are lines of it, as other servers have it.
fn joined_parts(parts: &[Value], path: &str) -> Result<String, ApiError> {
    let read = |(index, part)| text_part(part, &format!("{path}[{index}]"));
    Ok(parts.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn text_part<'a>(part: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    let fields = Fields::of(part, path)?;
    match fields.require_string("type")? {
        "text" => fields.require_string("text"),
        "refusal" => fields.require_string("refusal"),
        "image_url" | "input_image" | "image" => Err(refused_part(path, "an image")),
        "input_audio" | "audio" | "audio_url" => Err(refused_part(path, "audio")),
        "video" | "video_url" => Err(refused_part(path, "a video")),
        "file" | "input_file" => Err(refused_part(path, "a file")),
        other => Err(ApiError::not_one_of(&fields.path("type"), other, &["text", "refusal"])),
    }
}

fn refused_part(path: &str, what: &str) -> ApiError {
    ApiError::unsupported(path, &format!("{what} in '{path}'"))
}

/// The calls of an assistant message, with their arguments as templates expect them.
/// An empty list counts as absent.
fn tool_calls(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let calls = fields.array("tool_calls")?.map_or(&[][..], Vec::as_slice);
    if calls.is_empty() {
        return Ok(None);
    }
    let path = fields.path("tool_calls");
    let read = |(index, call)| tool_call(call, &format!("{path}[{index}]"));
    Ok(Some(Value::Array(calls.iter().enumerate().map(read).collect::<Result<_, _>>()?)))
}

/// The one call of an assistant message from before there were tools.
fn function_call(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let Some(function) = fields.object("function_call")? else { return Ok(None) };
    let name = function.require_string("name")?;
    let arguments = parsed_arguments(&function)?;
    let arguments = arguments.or(function.get("arguments").cloned()).unwrap_or_else(|| json!({}));
    let id = function_call_id(name);
    let function = json!({ "name": name, "arguments": arguments });
    Ok(Some(json!([{ "id": id, "type": "function", "function": function }])))
}

/// Calls from before there were tools have no id.
fn function_call_id(name: &str) -> String {
    format!("call_{name}")
}

fn tool_call(call: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::of(call, path)?;
    let function = fields.object("function")?;
    let function = function.ok_or_else(|| ApiError::missing(&fields.path("function")))?;
    function.require_string("name")?;
    let mut call = call.clone();
    if let Some(arguments) = parsed_arguments(&function)? {
        call["function"]["arguments"] = arguments;
    }
    Ok(call)
}

/// `None` where the arguments are to stay as they are: not a string, or a string that is no object.
fn parsed_arguments(function: &Fields) -> Result<Option<Value>, ApiError> {
    match function.get("arguments") {
        // Templates would fail without.
        None => Ok(Some(json!({}))),
        Some(Value::Object(_)) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(Some(json!({}))),
        Some(Value::String(text)) => {
            Ok(serde_json::from_str(text).ok().filter(|value: &Value| value.is_object()))
        }
        Some(other) => Err(wrong_type(&function.path("arguments"), "a string", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(messages: &Value) -> Result<Vec<Value>, ApiError> {
        let body = json!({ "model": "m", "messages": messages });
        ChatRequest::parse(&body).map(|request| request.messages)
    }

    #[test]
    fn normalises_messages_for_the_template() {
        #[track_caller]
        fn check(message: Value, expected: Value) {
            assert_eq!(parse(&json!([message])).unwrap(), [expected]);
        }
        check(
            json!({ "role": "user", "content": "hi", "extra": 1 }),
            json!({ "role": "user", "content": "hi" }),
        );
        check(
            json!({ "role": "developer", "content": "be brief" }),
            json!({ "role": "system", "content": "be brief" }),
        );
        check(
            json!({ "role": "user", "name": "bo", "content": [
                { "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }),
            json!({ "role": "user", "content": "a\nb", "name": "bo" }),
        );
        check(
            json!({ "role": "tool", "tool_call_id": "c1", "content": "4" }),
            json!({ "role": "tool", "content": "4", "tool_call_id": "c1" }),
        );
        check(
            json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "c1",
                "type": "function", "function": { "name": "f", "arguments": "{\"b\":1,\"a\":2}" } }] }),
            json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "c1",
                "type": "function", "function": { "name": "f", "arguments": { "b": 1, "a": 2 } } }] }),
        );
        check(
            json!({ "role": "assistant", "tool_calls": [
                { "function": { "name": "f", "arguments": "not json" } }] }),
            json!({ "role": "assistant", "content": null, "tool_calls": [
                { "function": { "name": "f", "arguments": "not json" } }] }),
        );
        check(
            json!({ "role": "assistant", "tool_calls": [{ "function": { "name": "f" } }] }),
            json!({ "role": "assistant", "content": null, "tool_calls": [
                { "function": { "name": "f", "arguments": {} } }] }),
        );
        check(
            json!({ "role": "assistant", "content": "", "tool_calls": [] }),
            json!({ "role": "assistant", "content": "" }),
        );
    }

    #[test]
    fn functions_are_tools() {
        let messages = parse(&json!([
            { "role": "assistant", "function_call": { "name": "f", "arguments": "{\"a\":1}" } },
            { "role": "function", "name": "f", "content": "4" },
            { "role": "assistant", "tool_calls": [{ "id": "c1", "type": "function",
                "function": { "name": "g", "arguments": "{}" } }] },
            { "role": "tool", "tool_call_id": "c1", "content": "5" },
        ]));
        let expected = json!([
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "call_f",
                "type": "function", "function": { "name": "f", "arguments": { "a": 1 } } }] },
            { "role": "tool", "name": "f", "content": "4", "tool_call_id": "call_f" },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "c1",
                "type": "function", "function": { "name": "g", "arguments": {} } }] },
            { "role": "tool", "content": "5", "tool_call_id": "c1", "name": "g" },
        ]);
        assert_eq!(Value::Array(messages.unwrap()), expected);
    }

    #[test]
    fn refuses_what_is_wrong_by_path() {
        #[track_caller]
        fn check(messages: Value, param: &str, code: &str) {
            let error = parse(&messages).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{error}");
        }
        check(json!(null), "messages", "missing_required_parameter");
        check(json!([]), "messages", "empty_array");
        check(json!("hi"), "messages", "invalid_type");
        check(json!(["hi"]), "messages[0]", "invalid_type");
        check(json!([{ "content": "x" }]), "messages[0].role", "missing_required_parameter");
        check(json!([{ "role": "bot", "content": "x" }]), "messages[0].role", "invalid_value");
        check(json!([{ "role": "user" }]), "messages[0].content", "missing_required_parameter");
        check(
            json!([{ "role": "assistant", "content": null }]),
            "messages[0].content",
            "missing_required_parameter",
        );
        check(json!([{ "role": "user", "content": 1 }]), "messages[0].content", "invalid_type");
        check(json!([{ "role": "user", "content": [] }]), "messages[0].content", "empty_array");
        check(
            json!([{ "role": "user", "content": [
                { "type": "text", "text": "what is this?" },
                { "type": "image_url", "image_url": { "url": "data:," } }] }]),
            "messages[0].content[1]",
            "unsupported_parameter",
        );
        check(
            json!([{ "role": "user", "content": [{ "type": "smell" }] }]),
            "messages[0].content[0].type",
            "invalid_value",
        );
        check(
            json!([{ "role": "tool", "content": "4" }]),
            "messages[0].tool_call_id",
            "missing_required_parameter",
        );
        check(
            json!([{ "role": "assistant", "tool_calls": [{ "function": {} }] }]),
            "messages[0].tool_calls[0].function.name",
            "missing_required_parameter",
        );
        check(
            json!([{ "role": "assistant", "function_call": {} }]),
            "messages[0].function_call.name",
            "missing_required_parameter",
        );
        check(
            json!([{ "role": "assistant", "content": "x", "audio": { "id": "a" } }]),
            "messages[0].audio",
            "unsupported_parameter",
        );
    }

    #[test]
    fn reads_tools_and_constraints() {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }],
            "tools": [{ "type": "function", "function": { "name": "f" } }],
            "response_format": { "type": "json_object" } });
        let request = ChatRequest::parse(&body).unwrap();
        assert!(request.tools.may_call() && request.constraint.is_some());
    }
}
