//! What the text of an answer must match: `response_format`, vLLM's `structured_outputs`, and the
//! `guided_…` fields that came before it.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::tools::check_name;

const CHOICES_MAX: usize = 1024;
const KINDS: &[&str] = &["json", "regex", "choice", "grammar", "json_object"];

/// What the text of an answer must match.
#[derive(Debug, Clone, PartialEq)]
pub struct Constraint {
    pub pattern: Pattern,
    /// The field that asks for it, as errors name it.
    pub param: String,
}

/// A set of texts.
#[derive(Debug, Clone, PartialEq)]
pub enum Pattern {
    /// JSON that validates against this schema, which is an object or a boolean.
    Schema(Value),
    /// A regular expression that the whole text matches.
    Regex(String),
    /// One of these, at least one, none of them empty.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Grammar(String),
}

impl Constraint {
    /// What the request asks for, which is at most one thing.
    pub(super) fn of(fields: &Fields) -> Result<Option<Constraint>, ApiError> {
        let asked = [response_format(fields)?, structured_outputs(fields)?];
        let mut asked: Vec<_> = asked.into_iter().flatten().collect();
        for (name, kind) in [
            ("guided_json", "json"),
            ("guided_regex", "regex"),
            ("guided_choice", "choice"),
            ("guided_grammar", "grammar"),
        ] {
            asked.extend(read(fields, name, kind)?);
        }
        if let [first, second, ..] = asked.as_slice() {
            return Err(several(&second.param, &first.param));
        }
        Ok(asked.pop())
    }
}

fn several(param: &str, other: &str) -> ApiError {
    let message = format!(
        "Invalid value for '{param}': the answer is constrained by '{other}' already, and only one \
         constraint is possible."
    );
    ApiError::invalid_value(param, message)
}

fn response_format(fields: &Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    let constraint = |schema: &Value, param: String| Constraint {
        pattern: Pattern::Schema(schema.clone()),
        param,
    };
    match format.require_string("type")? {
        "text" => Ok(None),
        // Some servers take a schema here, and some clients send it.
        "json_object" => match schema(&format, "schema")? {
            Some(schema) => Ok(Some(constraint(&schema, format.path("schema")))),
            None => Ok(Some(constraint(&json!({ "type": "object" }), format.path("type")))),
        },
        "json_schema" => {
            format.require("json_schema")?;
            let inner = format.object("json_schema")?.unwrap_or_else(|| format.clone());
            check_name(inner.require_string("name")?, &inner.path("name"))?;
            inner.string("description")?;
            inner.boolean("strict")?;
            let path = inner.path("schema");
            let schema = schema(&inner, "schema")?.ok_or_else(|| ApiError::missing(&path))?;
            Ok(Some(constraint(&schema, path)))
        }
        other => {
            let supported = &["json_object", "json_schema", "text"];
            Err(ApiError::not_one_of(&format.path("type"), other, supported))
        }
    }
}

fn schema(fields: &Fields, name: &str) -> Result<Option<Value>, ApiError> {
    match fields.get(name) {
        None => Ok(None),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(schema.clone())),
        Some(other) => Err(wrong_type(&fields.path(name), "an object", other)),
    }
}

fn structured_outputs(fields: &Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(outputs) = fields.object("structured_outputs")? else { return Ok(None) };
    for name in ["structural_tag", "whitespace_pattern"] {
        if outputs.get(name).is_some() {
            let path = outputs.path(name);
            return Err(ApiError::unsupported(&path, &format!("'{path}'")));
        }
    }
    if outputs.boolean("disable_additional_properties")? == Some(true) {
        let path = outputs.path("disable_additional_properties");
        return Err(ApiError::unsupported(&path, &format!("'{path}'")));
    }
    let mut asked: Option<Constraint> = None;
    for kind in KINDS {
        let Some(next) = read(&outputs, kind, kind)? else { continue };
        if let Some(first) = asked {
            return Err(several(&next.param, &first.param));
        }
        asked = Some(next);
    }
    asked.map(Some).ok_or_else(|| {
        let message = "Invalid 'structured_outputs': expected one of 'json', 'regex', 'choice', \
                       'grammar' and 'json_object'.";
        ApiError::invalid_value("structured_outputs", message)
    })
}

fn read(fields: &Fields, name: &str, kind: &str) -> Result<Option<Constraint>, ApiError> {
    let Some(value) = fields.get(name) else { return Ok(None) };
    let path = fields.path(name);
    let pattern = match kind {
        "json" => Pattern::Schema(schema_or_its_text(value, &path)?),
        "json_object" => match fields.boolean(name)? {
            Some(true) => Pattern::Schema(json!({ "type": "object" })),
            _ => return Ok(None),
        },
        "regex" => Pattern::Regex(text(fields, name)?),
        "grammar" => Pattern::Grammar(text(fields, name)?),
        _ => Pattern::Choice(choices(fields, name)?),
    };
    Ok(Some(Constraint { pattern, param: path }))
}

/// Clients send a schema as an object or as the text of one.
fn schema_or_its_text(value: &Value, path: &str) -> Result<Value, ApiError> {
    let parsed = match value {
        Value::Object(_) | Value::Bool(_) => return Ok(value.clone()),
        Value::String(text) => serde_json::from_str::<Value>(text).ok(),
        _ => None,
    };
    parsed.filter(|schema| schema.is_object() || schema.is_boolean()).ok_or_else(|| match value {
        Value::String(_) => {
            let message = format!("Invalid '{path}': the string is not a JSON schema.");
            ApiError::invalid_value(path, message)
        }
        other => wrong_type(path, "an object or a string", other),
    })
}

fn text(fields: &Fields, name: &str) -> Result<String, ApiError> {
    match fields.require_string(name)? {
        "" => Err(ApiError::empty_string(&fields.path(name))),
        text => Ok(text.to_owned()),
    }
}

fn choices(fields: &Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let (path, items) = (fields.path(name), fields.array(name)?);
    let items = items.map_or(&[][..], Vec::as_slice);
    if items.is_empty() {
        return Err(ApiError::empty_array(&path));
    }
    if items.len() > CHOICES_MAX {
        return Err(ApiError::array_too_long(&path, CHOICES_MAX, items.len()));
    }
    let read = |(index, item): (usize, &Value)| match item {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::empty_string(&format!("{path}[{index}]")))
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_type(&format!("{path}[{index}]"), "a string", other)),
    };
    items.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Option<Constraint>, ApiError> {
        Constraint::of(&Fields::of_body(body).unwrap())
    }

    #[test]
    fn reads_each_spelling() {
        #[track_caller]
        fn check(body: Value, pattern: Pattern, param: &str) {
            let expected = Constraint { pattern, param: param.into() };
            assert_eq!(parse(&body).unwrap(), Some(expected), "{body}");
        }
        let any = || json!({ "type": "object" });
        let schema = || json!({ "type": "object", "properties": { "a": {} } });
        let format = |format: Value| json!({ "response_format": format });
        let outputs = |outputs: Value| json!({ "structured_outputs": outputs });
        check(
            format(json!({ "type": "json_object" })),
            Pattern::Schema(any()),
            "response_format.type",
        );
        check(
            format(json!({ "type": "json_object", "schema": schema() })),
            Pattern::Schema(schema()),
            "response_format.schema",
        );
        check(
            format(json!({ "type": "json_schema", "json_schema":
                { "name": "n", "schema": schema(), "strict": true, "description": "d" } })),
            Pattern::Schema(schema()),
            "response_format.json_schema.schema",
        );
        check(
            outputs(json!({ "json": schema() })),
            Pattern::Schema(schema()),
            "structured_outputs.json",
        );
        check(
            outputs(json!({ "json": schema().to_string() })),
            Pattern::Schema(schema()),
            "structured_outputs.json",
        );
        check(
            outputs(json!({ "json_object": true, "json": null })),
            Pattern::Schema(any()),
            "structured_outputs.json_object",
        );
        check(json!({ "guided_json": schema() }), Pattern::Schema(schema()), "guided_json");
        check(json!({ "guided_regex": "a+" }), Pattern::Regex("a+".into()), "guided_regex");
        let choice = || Pattern::Choice(vec!["a".into(), "b".into()]);
        check(json!({ "guided_choice": ["a", "b"] }), choice(), "guided_choice");
        check(outputs(json!({ "choice": ["a", "b"] })), choice(), "structured_outputs.choice");
        let grammar = Pattern::Grammar("start: \"a\"".into());
        check(json!({ "guided_grammar": "start: \"a\"" }), grammar, "guided_grammar");
    }

    #[test]
    fn text_is_no_constraint() {
        for body in [
            json!({}),
            json!({ "response_format": null, "structured_outputs": null, "guided_json": null }),
            json!({ "response_format": { "type": "text" } }),
        ] {
            assert_eq!(parse(&body).unwrap(), None, "{body}");
        }
    }

    #[test]
    fn refuses_what_is_wrong_by_path() {
        #[track_caller]
        fn check(body: Value, param: &str, code: &str) {
            let error = parse(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{error}");
        }
        let format = |format: Value| json!({ "response_format": format });
        let outputs = |outputs: Value| json!({ "structured_outputs": outputs });
        check(format(json!("json")), "response_format", "invalid_type");
        check(format(json!({})), "response_format.type", "missing_required_parameter");
        check(format(json!({ "type": "xml" })), "response_format.type", "invalid_value");
        let missing = "missing_required_parameter";
        let schema = |inner: Value| format(json!({ "type": "json_schema", "json_schema": inner }));
        check(format(json!({ "type": "json_schema" })), "response_format.json_schema", missing);
        check(schema(json!({})), "response_format.json_schema.name", missing);
        check(schema(json!({ "name": "n" })), "response_format.json_schema.schema", missing);
        check(
            schema(json!({ "name": "a b" })),
            "response_format.json_schema.name",
            "invalid_value",
        );
        check(
            schema(json!({ "name": "n", "schema": [] })),
            "response_format.json_schema.schema",
            "invalid_type",
        );
        check(outputs(json!({})), "structured_outputs", "invalid_value");
        check(
            outputs(json!({ "json": {}, "regex": "a" })),
            "structured_outputs.regex",
            "invalid_value",
        );
        check(
            outputs(json!({ "structural_tag": "{}" })),
            "structured_outputs.structural_tag",
            "unsupported_parameter",
        );
        check(outputs(json!({ "json": "{" })), "structured_outputs.json", "invalid_value");
        check(json!({ "guided_json": 1 }), "guided_json", "invalid_type");
        check(json!({ "guided_regex": "" }), "guided_regex", "empty_string");
        check(json!({ "guided_choice": [] }), "guided_choice", "empty_array");
        check(json!({ "guided_choice": ["a", 1] }), "guided_choice[1]", "invalid_type");
        check(
            json!({ "guided_regex": "a", "response_format": { "type": "json_object" } }),
            "guided_regex",
            "invalid_value",
        );
    }
}
