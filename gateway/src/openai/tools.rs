//! `tools`, `tool_choice` and `parallel_tool_calls`, and the `functions` and `function_call` they replaced.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};

const TOOLS_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 64;
const NAME_PATTERN: &str = "^[a-zA-Z0-9_-]+$";
const CHOICES: &[&str] = &["none", "auto", "required"];

/// What a request says about functions.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// Those that are described, at most 128, each name once. May be empty.
    pub functions: Vec<Function>,
    /// Whether they are called.
    pub choice: ToolChoice,
    /// Those that may be called: indices of `functions`, rising.
    pub callable: Vec<usize>,
    /// One answer may have several calls.
    pub parallel_calls: bool,
    /// The request used `functions`, so that its answer has a `function_call` instead of `tool_calls`.
    pub are_legacy: bool,
}

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Letters, digits, `_` and `-`; 1 to 64 of them.
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema that is an object and asks for one; `None` means that there are no arguments.
    pub parameters: Option<Value>,
    /// Arguments must match the schema, also where calling is up to the model.
    pub strict: bool,
}

/// Whether functions are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolChoice {
    /// Not at all.
    None,
    /// If the model wants to.
    Auto,
    /// At least one of `callable`.
    Required,
    /// The one of `callable`, once.
    Named,
}

impl Tools {
    pub(super) fn of_chat(fields: &Fields) -> Result<Tools, ApiError> {
        let (tools, functions) = (fields.array("tools")?, fields.array("functions")?);
        let parallel_calls = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        if functions.is_some_and(|items| !items.is_empty()) {
            for name in ["tools", "tool_choice"] {
                if fields.get(name).is_some() {
                    return Err(excluded(name, "functions"));
                }
            }
            return legacy_functions(fields, functions.map_or(&[], Vec::as_slice));
        }
        if fields.get("function_call").is_some_and(|value| value != "none" && value != "auto") {
            return Err(only_with("function_call", "functions"));
        }
        let functions = all_functions("tools", tools.map_or(&[], Vec::as_slice), tool)?;
        let (choice, callable) = match fields.get("tool_choice") {
            Some(value) if functions.is_empty() => match value.as_str() {
                Some("none") => (ToolChoice::None, Vec::new()),
                Some("auto") if tools.is_some() => (ToolChoice::None, Vec::new()),
                _ => return Err(only_with("tool_choice", "tools")),
            },
            Some(value) => tool_choice(value, &functions)?,
            None if functions.is_empty() => (ToolChoice::None, Vec::new()),
            None => (ToolChoice::Auto, all(&functions)),
        };
        Ok(Tools { functions, choice, callable, parallel_calls, are_legacy: false })
    }

    /// Whether the answer may have calls.
    pub fn may_call(&self) -> bool {
        self.choice != ToolChoice::None
    }

    /// Whether the answer is nothing but calls.
    pub fn must_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named)
    }

    /// The functions that may be called.
    pub fn callable(&self) -> impl Iterator<Item = &Function> {
        self.callable.iter().map(|index| &self.functions[*index])
    }

    /// Their names.
    pub fn callable_names(&self) -> impl Iterator<Item = &str> {
        self.callable().map(|function| function.name.as_str())
    }

    /// The functions as chat templates describe them. `None` where nothing is to be called, since a
    /// model calls what it is told of.
    pub fn for_template(&self) -> Option<Vec<Value>> {
        let describe = |function: &Function| {
            let mut description = json!({ "name": function.name });
            if let Some(text) = &function.description {
                description["description"] = json!(text);
            }
            let nothing = || json!({ "type": "object", "properties": {} });
            let mut parameters = function.parameters.clone().unwrap_or_else(nothing);
            if let Some(schema) = parameters.as_object_mut() {
                // It tells a model nothing, and some of them stumble over it.
                schema.shift_remove("$schema");
            }
            description["parameters"] = parameters;
            json!({ "type": "function", "function": description })
        };
        self.may_call().then(|| self.functions.iter().map(describe).collect())
    }
}

fn all(functions: &[Function]) -> Vec<usize> {
    (0..functions.len()).collect()
}

fn all_functions(
    path: &str,
    items: &[Value],
    read: impl Fn(&Value, &str) -> Result<Function, ApiError>,
) -> Result<Vec<Function>, ApiError> {
    if items.len() > TOOLS_MAX {
        return Err(ApiError::array_too_long(path, TOOLS_MAX, items.len()));
    }
    let mut functions: Vec<Function> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let function = read(item, &format!("{path}[{index}]"))?;
        if functions.iter().any(|other| other.name == function.name) {
            let name = &function.name;
            let message = format!(
                "Invalid '{path}': function names must be unique, but '{name}' is given twice."
            );
            return Err(ApiError::invalid_value(path, message));
        }
        functions.push(function);
    }
    Ok(functions)
}

fn tool(value: &Value, path: &str) -> Result<Function, ApiError> {
    let fields = Fields::of(value, path)?;
    check_tool_type(&fields)?;
    fields.require("function")?;
    function(fields.require("function")?, &fields.path("function"))
}

fn check_tool_type(fields: &Fields) -> Result<(), ApiError> {
    match fields.require_string("type")? {
        "function" => Ok(()),
        "custom" => {
            let path = fields.path("type");
            Err(ApiError::unsupported(&path, &format!("'{path}' = 'custom'")))
        }
        other => Err(ApiError::not_one_of(&fields.path("type"), other, &["function"])),
    }
}

fn function(value: &Value, path: &str) -> Result<Function, ApiError> {
    let fields = Fields::of(value, path)?;
    let name = fields.require_string("name")?.to_owned();
    check_name(&name, &fields.path("name"))?;
    Ok(Function {
        parameters: parameters(&fields, &name)?,
        description: fields.string("description")?.map(str::to_owned),
        strict: fields.boolean("strict")?.unwrap_or(false),
        name,
    })
}

pub(super) fn check_name(name: &str, path: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::empty_string(path));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(ApiError::string_too_long(path, NAME_BYTES_MAX, name.chars().count()));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        let message = format!(
            "Invalid '{path}': string does not match pattern. \
             Expected a string that matches the pattern '{NAME_PATTERN}'."
        );
        return Err(ApiError::invalid_value(path, message));
    }
    Ok(())
}

/// The schema of the arguments, which must be an object's.
fn parameters(fields: &Fields, name: &str) -> Result<Option<Value>, ApiError> {
    let path = fields.path("parameters");
    let Some(schema) = fields.get("parameters") else { return Ok(None) };
    let object = schema.as_object().ok_or_else(|| wrong_type(&path, "an object", schema))?;
    let is_object = match object.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
    };
    if !is_object {
        let kind = &object["type"];
        let problem =
            format!("schema must be a JSON Schema of 'type: \"object\"', got 'type: {kind}'");
        return Err(ApiError::function_parameters(&path, name, &problem));
    }
    Ok(Some(schema.clone()))
}

fn tool_choice(
    value: &Value,
    functions: &[Function],
) -> Result<(ToolChoice, Vec<usize>), ApiError> {
    match value {
        Value::String(choice) => match choice.as_str() {
            "none" => Ok((ToolChoice::None, Vec::new())),
            "auto" => Ok((ToolChoice::Auto, all(functions))),
            "required" => Ok((ToolChoice::Required, all(functions))),
            other => Err(ApiError::not_one_of("tool_choice", other, CHOICES)),
        },
        Value::Object(_) => {
            let fields = Fields::of(value, "tool_choice")?;
            match fields.require_string("type")? {
                "function" => {
                    let index = named(&fields, functions, "tool_choice")?;
                    Ok((ToolChoice::Named, vec![index]))
                }
                "allowed_tools" => allowed_tools(&fields, functions),
                other => {
                    let supported = &["function", "allowed_tools"];
                    Err(ApiError::not_one_of("tool_choice.type", other, supported))
                }
            }
        }
        other => Err(wrong_type("tool_choice", "a string or an object", other)),
    }
}

/// The index of `function.name`, or of `name` as the Responses API has it.
fn named(fields: &Fields, functions: &[Function], param: &str) -> Result<usize, ApiError> {
    let name = match fields.object("function")? {
        Some(function) => function.require_string("name")?,
        None if fields.get("name").is_some() => fields.require_string("name")?,
        None => return Err(ApiError::missing(&fields.path("function"))),
    };
    index_of(name, functions, param, "tools")
}

fn index_of(
    name: &str,
    functions: &[Function],
    param: &str,
    among: &str,
) -> Result<usize, ApiError> {
    functions.iter().position(|function| function.name == name).ok_or_else(|| {
        let message = format!(
            "Invalid value for '{param}': no function named '{name}' was specified in the '{among}' \
             parameter."
        );
        ApiError::invalid_value(param, message)
    })
}

/// `mode` and `tools`, either under `allowed_tools` or, as the Responses API has them, beside `type`.
fn allowed_tools(
    fields: &Fields,
    functions: &[Function],
) -> Result<(ToolChoice, Vec<usize>), ApiError> {
    let allowed = fields.object("allowed_tools")?.unwrap_or_else(|| fields.clone());
    let choice = match allowed.require_string("mode")? {
        "auto" => ToolChoice::Auto,
        "required" => ToolChoice::Required,
        other => return Err(ApiError::not_one_of(&allowed.path("mode"), other, &CHOICES[1..])),
    };
    allowed.require("tools")?;
    let tools = allowed.array("tools")?.map_or(&[][..], Vec::as_slice);
    let path = allowed.path("tools");
    if tools.is_empty() {
        return Err(ApiError::empty_array(&path));
    }
    if tools.len() > TOOLS_MAX {
        return Err(ApiError::array_too_long(&path, TOOLS_MAX, tools.len()));
    }
    let mut callable = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let fields = Fields::of(tool, &path)?;
        check_tool_type(&fields)?;
        callable.push(named(&fields, functions, &path)?);
    }
    callable.sort_unstable();
    callable.dedup();
    Ok((choice, callable))
}

fn legacy_functions(fields: &Fields, items: &[Value]) -> Result<Tools, ApiError> {
    let functions = all_functions("functions", items, function)?;
    let (choice, callable) = match fields.get("function_call") {
        None => (ToolChoice::Auto, all(&functions)),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => (ToolChoice::None, Vec::new()),
            "auto" => (ToolChoice::Auto, all(&functions)),
            other => return Err(ApiError::not_one_of("function_call", other, &CHOICES[..2])),
        },
        Some(value @ Value::Object(_)) => {
            let name = Fields::of(value, "function_call")?;
            let name = name.require_string("name")?;
            let index = index_of(name, &functions, "function_call", "functions")?;
            (ToolChoice::Named, vec![index])
        }
        Some(other) => return Err(wrong_type("function_call", "a string or an object", other)),
    };
    Ok(Tools { functions, choice, callable, parallel_calls: false, are_legacy: true })
}

fn only_with(param: &str, other: &str) -> ApiError {
    let message = format!(
        "Invalid value for '{param}': '{param}' is only allowed when '{other}' are specified."
    );
    ApiError::invalid_value(param, message)
}

fn excluded(param: &str, other: &str) -> ApiError {
    let message = format!(
        "Invalid value for '{param}': '{param}' is not allowed when '{other}' are specified."
    );
    ApiError::invalid_value(param, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Tools, ApiError> {
        Tools::of_chat(&Fields::of_body(body).unwrap())
    }

    fn tool_named(name: &str) -> Value {
        json!({ "type": "function", "function": { "name": name } })
    }

    fn with_choice(choice: Value) -> Value {
        json!({ "tools": [tool_named("f"), tool_named("g"), tool_named("h")], "tool_choice": choice })
    }

    #[test]
    fn reads_which_functions_may_be_called() {
        #[track_caller]
        fn check(body: Value, choice: ToolChoice, callable: &[&str]) {
            let tools = parse(&body).unwrap();
            assert_eq!(tools.choice, choice, "{body}");
            assert_eq!(tools.callable_names().collect::<Vec<_>>(), callable, "{body}");
            assert_eq!(tools.for_template().is_some(), choice != ToolChoice::None);
        }
        check(json!({}), ToolChoice::None, &[]);
        check(json!({ "tools": [] }), ToolChoice::None, &[]);
        check(json!({ "tools": [], "tool_choice": "auto" }), ToolChoice::None, &[]);
        check(json!({ "tool_choice": "none" }), ToolChoice::None, &[]);
        check(with_choice(json!(null)), ToolChoice::Auto, &["f", "g", "h"]);
        check(with_choice(json!("auto")), ToolChoice::Auto, &["f", "g", "h"]);
        check(with_choice(json!("none")), ToolChoice::None, &[]);
        check(with_choice(json!("required")), ToolChoice::Required, &["f", "g", "h"]);
        check(with_choice(tool_named("g")), ToolChoice::Named, &["g"]);
        check(with_choice(json!({ "type": "function", "name": "h" })), ToolChoice::Named, &["h"]);
        let inner = json!({ "mode": "required", "tools": [tool_named("h"), tool_named("f")] });
        let allowed = json!({ "type": "allowed_tools", "allowed_tools": inner });
        check(with_choice(allowed), ToolChoice::Required, &["f", "h"]);
        let allowed = json!({ "type": "allowed_tools", "mode": "auto",
            "tools": [{ "type": "function", "name": "g" }, { "type": "function", "name": "g" }] });
        check(with_choice(allowed), ToolChoice::Auto, &["g"]);
        let functions = json!([{ "name": "f" }, { "name": "g" }]);
        check(json!({ "functions": functions }), ToolChoice::Auto, &["f", "g"]);
        let body = json!({ "functions": functions, "function_call": { "name": "g" } });
        check(body, ToolChoice::Named, &["g"]);
        check(json!({ "functions": functions, "function_call": "none" }), ToolChoice::None, &[]);
    }

    #[test]
    fn describes_functions_for_the_template() {
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
        let function =
            json!({ "name": "f", "description": "d", "parameters": schema, "strict": true });
        let tools = parse(&json!({ "tools": [
            { "type": "function", "function": function }, tool_named("g")],
            "parallel_tool_calls": false }));
        let tools = tools.unwrap();
        assert!(tools.functions[0].strict && !tools.functions[1].strict && !tools.parallel_calls);
        let described = json!([
            { "type": "function", "function":
                { "name": "f", "description": "d", "parameters": schema } },
            { "type": "function", "function":
                { "name": "g", "parameters": { "type": "object", "properties": {} } } }]);
        assert_eq!(json!(tools.for_template().unwrap()), described);
    }

    #[test]
    fn refuses_what_is_wrong_by_path() {
        #[track_caller]
        fn check(body: Value, param: &str, code: &str) {
            let error = parse(&body).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert_eq!(error.code.as_deref(), Some(code), "{error}");
        }
        let one =
            |function: Value| json!({ "tools": [{ "type": "function", "function": function }] });
        check(json!({ "tools": {} }), "tools", "invalid_type");
        check(json!({ "tools": [1] }), "tools[0]", "invalid_type");
        check(json!({ "tools": [{}] }), "tools[0].type", "missing_required_parameter");
        check(json!({ "tools": [{ "type": "custom" }] }), "tools[0].type", "unsupported_parameter");
        check(json!({ "tools": [{ "type": "search" }] }), "tools[0].type", "invalid_value");
        check(
            json!({ "tools": [{ "type": "function" }] }),
            "tools[0].function",
            "missing_required_parameter",
        );
        check(one(json!({})), "tools[0].function.name", "missing_required_parameter");
        check(one(json!({ "name": "" })), "tools[0].function.name", "empty_string");
        check(one(json!({ "name": "a b" })), "tools[0].function.name", "invalid_value");
        check(one(json!({ "name": "é" })), "tools[0].function.name", "invalid_value");
        let long = json!({ "name": "f".repeat(65) });
        check(one(long), "tools[0].function.name", "string_above_max_length");
        let parameters = "tools[0].function.parameters";
        check(one(json!({ "name": "f", "parameters": [] })), parameters, "invalid_type");
        let list = json!({ "name": "f", "parameters": { "type": "array" } });
        check(one(list), parameters, "invalid_function_parameters");
        check(
            one(json!({ "name": "f", "strict": "yes" })),
            "tools[0].function.strict",
            "invalid_type",
        );
        check(json!({ "tools": [tool_named("f"), tool_named("f")] }), "tools", "invalid_value");
        let many: Vec<_> = (0..129).map(|index| tool_named(&format!("f{index}"))).collect();
        check(json!({ "tools": many }), "tools", "array_above_max_length");
        check(json!({ "tool_choice": "auto" }), "tool_choice", "invalid_value");
        check(json!({ "tool_choice": "required" }), "tool_choice", "invalid_value");
        check(with_choice(json!("maybe")), "tool_choice", "invalid_value");
        check(with_choice(json!(1)), "tool_choice", "invalid_type");
        check(with_choice(json!({ "type": "x" })), "tool_choice.type", "invalid_value");
        check(
            with_choice(json!({ "type": "function" })),
            "tool_choice.function",
            "missing_required_parameter",
        );
        check(with_choice(tool_named("x")), "tool_choice", "invalid_value");
        let allowed =
            |inner: Value| with_choice(json!({ "type": "allowed_tools", "allowed_tools": inner }));
        check(allowed(json!({})), "tool_choice.allowed_tools.mode", "missing_required_parameter");
        check(
            allowed(json!({ "mode": "auto", "tools": [] })),
            "tool_choice.allowed_tools.tools",
            "empty_array",
        );
        check(
            allowed(json!({ "mode": "auto", "tools": [tool_named("x")] })),
            "tool_choice.allowed_tools.tools[0]",
            "invalid_value",
        );
        check(json!({ "parallel_tool_calls": 1 }), "parallel_tool_calls", "invalid_type");
        let functions = json!([{ "name": "f" }]);
        check(
            json!({ "functions": functions, "tools": [tool_named("g")] }),
            "tools",
            "invalid_value",
        );
        check(
            json!({ "functions": functions, "function_call": { "name": "g" } }),
            "function_call",
            "invalid_value",
        );
        check(json!({ "function_call": { "name": "g" } }), "function_call", "invalid_value");
    }
}
