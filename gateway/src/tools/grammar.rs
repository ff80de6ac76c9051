//! What must be followed by the text of an answer, as one grammar in llguidance's variant of Lark.
//!
//! Forced calls, and the answers to a response format, come after the reasoning, if there is any. Strict
//! functions that need not be called leave the text free up to a call's marker.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::dialect::{CallFormat, Dialect, Thinking};
use super::dialect::{HERMES_CLOSE, HERMES_OPEN, LLAMA_OPEN, MISTRAL_ARGUMENTS, MISTRAL_OPEN};
use super::lark::{escaped, literal, regex_literal};
use super::schema::{Problem, any_object, prepared};
use super::{deepseek, harmony};
use crate::openai::{ApiError, Constraint, Function, Pattern, ToolChoice, Tools};

/// Calls of one answer that a grammar allows.
const CALLS_MAX: usize = 16;

/// The grammar that an answer must follow; none where its text is free. Errors: what is asked for
/// cannot be expressed, or not together. A grammar that is returned may still fail to compile.
pub fn grammar_of(
    tools: &Tools,
    constraint: Option<&Constraint>,
    dialect: &Dialect,
    thinking: Thinking,
) -> Result<Option<String>, ApiError> {
    let may_call = tools.may_call();
    if let Some(constraint) = constraint {
        check_together(tools, constraint)?;
        if let (Pattern::Grammar(text), false, false) =
            (&constraint.pattern, may_call, dialect.may_think(thinking))
        {
            return Ok(Some(text.clone()));
        }
    }
    let mut grammar = Grammar::new(dialect);
    if tools.must_call() {
        let calls = grammar.calls(tools, true)?;
        let start = grammar.after_reasoning(thinking, &calls, None);
        return Ok(Some(grammar.finish(&start)));
    }
    let start = match constraint {
        Some(constraint) => {
            let body = body(constraint)?;
            grammar.rule("body", &body);
            let calls = if may_call { Some(grammar.calls(tools, false)?) } else { None };
            grammar.after_reasoning(thinking, calls.as_deref().unwrap_or(""), Some("body"))
        }
        None if may_call && needs_grammar(tools) => grammar.free_text_and_calls(tools)?,
        None => return Ok(None),
    };
    Ok(Some(grammar.finish(&start)))
}

/// The grammar that a text without calls and reasoning must follow.
pub fn text_grammar(constraint: &Constraint) -> Result<String, ApiError> {
    if let Pattern::Grammar(text) = &constraint.pattern {
        return Ok(text.clone());
    }
    Ok(format!("start: {}\n", body(constraint)?))
}

/// Whether what the model may call must be checked though it need not call.
fn needs_grammar(tools: &Tools) -> bool {
    tools.callable().any(|function| function.strict) || tools.callable.len() < tools.functions.len()
}

fn check_together(tools: &Tools, constraint: &Constraint) -> Result<(), ApiError> {
    let param = &constraint.param;
    let is_format = param.starts_with("response_format");
    let is_grammar = matches!(constraint.pattern, Pattern::Grammar(_));
    if (tools.must_call() && !is_format) || (tools.may_call() && is_grammar) {
        let message = format!(
            "Invalid value for '{param}': it is not allowed when 'tools' are to be called. \
             Use 'tool_choice': 'none' or leave '{param}' out."
        );
        return Err(ApiError::invalid_value(param, message));
    }
    Ok(())
}

fn body(constraint: &Constraint) -> Result<String, ApiError> {
    match &constraint.pattern {
        Pattern::Schema(schema) => {
            let schema = prepared(schema);
            let schema = schema.map_err(|problem| refused_schema(&constraint.param, &problem))?;
            Ok(format!("%json {schema}"))
        }
        Pattern::Regex(regex) => Ok(regex_literal(regex)),
        Pattern::Choice(choices) => {
            let choices: Vec<_> = choices.iter().map(|choice| literal(choice)).collect();
            Ok(choices.join(" | "))
        }
        Pattern::Grammar(text) => Ok(format!("%lark {{\n{text}\n}}")),
    }
}

fn refused_schema(param: &str, problem: &Problem) -> ApiError {
    ApiError::json_schema(param, &sentence(problem))
}

fn sentence(problem: &Problem) -> String {
    match problem.place.as_str() {
        "" => format!("the schema {}", problem.what),
        place => format!("'{place}' {}", problem.what),
    }
}

/// Rules that are being written.
struct Grammar<'a> {
    dialect: &'a Dialect,
    rules: String,
    lazy_rules: usize,
}

impl<'a> Grammar<'a> {
    fn new(dialect: &'a Dialect) -> Self {
        let rules = "TEXT: /(?s:.*)/\n".to_owned();
        Self { dialect, rules, lazy_rules: 0 }
    }

    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    fn finish(self, start: &str) -> String {
        format!("start: {start}\n{}", self.rules)
    }

    /// A marker, as a special token where it is one.
    fn marker(&self, marker: &str) -> String {
        match self.special(marker) {
            Some(id) => format!("<[{id}]>"),
            None => literal(marker),
        }
    }

    fn special(&self, marker: &str) -> Option<u32> {
        let specials = &self.dialect.specials;
        specials.iter().find(|(name, _)| *name == marker).map(|(_, id)| *id)
    }

    /// Any text up to the next such marker, and that.
    fn text_through(&mut self, marker: &str) -> String {
        if let Some(id) = self.special(marker) {
            return format!("TEXT <[{id}]>");
        }
        self.lazy_rules += 1;
        let name = format!("through_{}", self.lazy_rules);
        self.rule(&format!("{name}[lazy]"), &format!("/(?s:.*){}/", escaped(marker)));
        name
    }

    /// Calls, or a text of the rule `body`, after the reasoning.
    fn after_reasoning(&mut self, thinking: Thinking, calls: &str, body: Option<&str>) -> String {
        if self.dialect.calls == CallFormat::Harmony {
            return self.harmony_messages(calls, body);
        }
        let alternatives: Vec<_> = [Some(calls), body].into_iter().flatten().collect();
        let alternatives: Vec<_> = alternatives.into_iter().filter(|one| !one.is_empty()).collect();
        let answer = format!("( {} )", alternatives.join(" | "));
        let (Some([open, close]), true) = (self.dialect.thinking, thinking != Thinking::Absent)
        else {
            return answer;
        };
        let inner = self.text_through(close);
        self.rule("gap", "(\"\\n\\n\" | \"\\n\")?");
        match thinking {
            Thinking::Open => format!("{inner} gap {answer}"),
            _ => format!("( {} {inner} gap )? {answer}", self.marker(open)),
        }
    }

    /// Reasoning in a message of its own, then one that is a call or an answer.
    fn harmony_messages(&mut self, calls: &str, body: Option<&str>) -> String {
        let reasoning = self.harmony_reasoning();
        let header = self.harmony_header("final");
        let answer = body.map(|body| format!("{header} {body}"));
        let calls = Some(calls.to_owned()).filter(|calls| !calls.is_empty());
        let alternatives: Vec<_> = [calls, answer].into_iter().flatten().collect();
        format!("( {reasoning} )? ( {} )", alternatives.join(" | "))
    }

    fn harmony_reasoning(&mut self) -> String {
        let inner = self.text_through(harmony::END);
        let (header, start) = (self.harmony_header("analysis"), self.marker(harmony::START));
        format!("{header} {inner} {start} \"assistant\"")
    }

    fn harmony_header(&self, channel: &str) -> String {
        let (before, after) = (self.marker(harmony::CHANNEL), self.marker(harmony::MESSAGE));
        format!("{before} {} {after}", literal(channel))
    }

    /// At least one call, from the first marker to the last.
    fn calls(&mut self, tools: &Tools, is_forced: bool) -> Result<String, ApiError> {
        let (marker, after) = self.section(tools, is_forced)?;
        let marker = marker.map(|marker| self.marker(marker)).unwrap_or_default();
        let more = calls_max(tools) - 1;
        let separator = match self.dialect.calls {
            CallFormat::Hermes => "\"\\n\"",
            CallFormat::MistralNamed => "",
            _ => return Ok(format!("{marker} {after}")),
        };
        self.rule("section", &format!("{marker} {after}"));
        Ok(match more {
            0 => "section".to_owned(),
            _ => format!("section ( {separator} section ){{0,{more}}}"),
        })
    }

    /// Text that is free until a marker of calls comes.
    fn free_text_and_calls(&mut self, tools: &Tools) -> Result<String, ApiError> {
        let (marker, after) = self.section(tools, false)?;
        let times = match self.dialect.calls {
            CallFormat::Hermes | CallFormat::MistralNamed => calls_max(tools),
            _ => 1,
        };
        match self.dialect.calls {
            CallFormat::None | CallFormat::Llama => {
                self.rules.push_str("FREE: /[^\\s{](?s:.*)/\n");
                let tagged =
                    self.special(LLAMA_OPEN).map(|id| format!(" | FREE? <[{id}]> {after}"));
                Ok(format!("FREE? | {after}{}", tagged.unwrap_or_default()))
            }
            CallFormat::Pythonic => {
                self.rules.push_str("FREE: /[^\\s\\[](?s:.*)/\n");
                Ok(format!("FREE? | {after}"))
            }
            CallFormat::Harmony => {
                let reasoning = self.harmony_reasoning();
                let preamble_header = self.harmony_header("commentary");
                let preamble = self.text_through(harmony::END);
                let start = self.marker(harmony::START);
                let preamble = format!("{preamble_header} {preamble} {start} \"assistant\"");
                let answer = self.harmony_header("final");
                Ok(format!("( {reasoning} )? ( {preamble} )? ( {after} | {answer} TEXT )"))
            }
            _ => {
                let head = self.text_through(marker.unwrap_or_default());
                self.rule("section", &format!("{head} {after}"));
                Ok(format!("section{{0,{times}}} TEXT"))
            }
        }
    }

    /// The marker of some calls, if they have one, and what follows it.
    fn section(
        &mut self,
        tools: &Tools,
        is_forced: bool,
    ) -> Result<(Option<&'static str>, String), ApiError> {
        self.call_rules(tools, is_forced)?;
        let more = calls_max(tools) - 1;
        let list = |separator: &str| match more {
            0 => "call".to_owned(),
            _ => format!("call ( {} call ){{0,{more}}}", literal(separator)),
        };
        Ok(match self.dialect.calls {
            CallFormat::Hermes => {
                let close = self.marker(HERMES_CLOSE);
                (Some(HERMES_OPEN), format!("\"\\n\" call \"\\n\" {close}"))
            }
            CallFormat::Llama | CallFormat::None => (None, list("; ")),
            CallFormat::MistralList => (Some(MISTRAL_OPEN), format!("\"[\" {} \"]\"", list(", "))),
            CallFormat::MistralNamed => (Some(MISTRAL_OPEN), "call".to_owned()),
            CallFormat::DeepSeekV3 | CallFormat::DeepSeekV31 => {
                let end = self.marker(deepseek::CALLS_END);
                let is_v3 = self.dialect.calls == CallFormat::DeepSeekV3;
                let calls = match more {
                    _ if is_v3 => list("\n"),
                    0 => "call".to_owned(),
                    _ => format!("call{{1,{}}}", more + 1),
                };
                (Some(deepseek::CALLS_BEGIN), format!("{calls} {end}"))
            }
            // A call ends the answer.
            CallFormat::Harmony => (None, "call".to_owned()),
            CallFormat::Pythonic => (None, format!("\"[\" {} \"]\"", list(", "))),
        })
    }

    /// `call`: one call of one of the functions.
    fn call_rules(&mut self, tools: &Tools, is_forced: bool) -> Result<(), ApiError> {
        let mut alternatives = Vec::new();
        for index in &tools.callable {
            let function = &tools.functions[*index];
            let param = parameters_path(tools, *index);
            let must_match = is_forced || function.strict;
            let arguments = format!("arguments_{index}");
            if self.dialect.calls == CallFormat::Pythonic {
                self.python_arguments(&arguments, function, &param)?;
            } else {
                let schema = arguments_schema(function, must_match, &param)?;
                self.rule(&arguments, &format!("%json {schema}"));
            }
            alternatives.push(self.call(&function.name, &arguments));
        }
        self.rule("call", &alternatives.join(" | "));
        Ok(())
    }

    fn call(&self, name: &str, arguments: &str) -> String {
        let object = |key: &str| {
            let head = literal(&format!("{{\"name\": \"{name}\", \"{key}\": "));
            format!("{head} {arguments} \"}}\"")
        };
        match self.dialect.calls {
            CallFormat::Hermes | CallFormat::MistralList => object("arguments"),
            CallFormat::Llama | CallFormat::None => object("parameters"),
            CallFormat::MistralNamed => {
                format!("{} {} {arguments}", literal(name), self.marker(MISTRAL_ARGUMENTS))
            }
            CallFormat::DeepSeekV3 => {
                let [begin, separator, end] = self.deepseek_markers();
                let head = literal(&format!("{name}\n```json\n"));
                let kind = literal(deepseek::KIND);
                format!("{begin} {kind} {separator} {head} {arguments} \"\\n```\" {end}")
            }
            CallFormat::DeepSeekV31 => {
                let [begin, separator, end] = self.deepseek_markers();
                format!("{begin} {} {separator} {arguments} {end}", literal(name))
            }
            CallFormat::Harmony => {
                let [channel, constrain, message] =
                    [harmony::CHANNEL, harmony::CONSTRAIN, harmony::MESSAGE]
                        .map(|marker| self.marker(marker));
                let to = literal(&format!("commentary to={}{name} ", harmony::NAMESPACE));
                format!("{channel} {to} {constrain} \"json\" {message} {arguments}")
            }
            CallFormat::Pythonic => {
                format!("{} {arguments} \")\"", literal(&format!("{name}(")))
            }
        }
    }

    fn deepseek_markers(&self) -> [String; 3] {
        [deepseek::CALL_BEGIN, deepseek::SEPARATOR, deepseek::CALL_END]
            .map(|marker| self.marker(marker))
    }

    /// `a=…, b=…` in the order of the schema, with values as JSON.
    fn python_arguments(
        &mut self,
        rule: &str,
        function: &Function,
        param: &str,
    ) -> Result<(), ApiError> {
        let schema = arguments_schema(function, true, param)?;
        let none = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
        // One rule for what may follow an argument, one for what may come first.
        let (mut first, mut next) = ("\"\"".to_owned(), "\"\"".to_owned());
        for (index, (name, property)) in properties.iter().enumerate().rev() {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if !name.bytes().all(is_plain) {
                let problem =
                    format!("'{name}' is no name for an argument of this model's functions");
                return Err(ApiError::function_parameters(param, &function.name, &problem));
            }
            let (value, after) = (format!("{rule}_value_{index}"), format!("{rule}_after_{index}"));
            self.rule(&value, &format!("%json {}", with_definitions(property, &schema)));
            self.rule(&after, &next);
            let skips = !required.iter().any(|one| one == name);
            let alternatives = |head: String, skip: &str| match skips {
                true => format!("{head} {value} {after} | {skip}"),
                false => format!("{head} {value} {after}"),
            };
            first = alternatives(literal(&format!("{name}=")), &first);
            next = alternatives(literal(&format!(", {name}=")), &after);
        }
        self.rule(rule, &first);
        Ok(())
    }
}

fn calls_max(tools: &Tools) -> usize {
    let is_one = tools.choice == ToolChoice::Named || !tools.parallel_calls;
    if is_one { 1 } else { CALLS_MAX }
}

fn parameters_path(tools: &Tools, index: usize) -> String {
    match tools.are_legacy {
        true => format!("functions[{index}].parameters"),
        false => format!("tools[{index}].function.parameters"),
    }
}

fn arguments_schema(function: &Function, must_match: bool, param: &str) -> Result<Value, ApiError> {
    let nothing = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
    match &function.parameters {
        None => prepared(&nothing()),
        Some(_) if !must_match => Ok(any_object()),
        Some(schema) => {
            let mut schema = schema.clone();
            schema["type"] = json!("object");
            prepared(&schema)
        }
    }
    .map_err(|problem| ApiError::function_parameters(param, &function.name, &sentence(&problem)))
}

/// A part of a schema that can stand alone.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let mut part = if part.is_object() { part.clone() } else { json!({}) };
    for name in ["$defs", "definitions", "x-guidance"] {
        if let Some(value) = whole.get(name) {
            part[name] = value.clone();
        }
    }
    part
}
