//! JSON between requests and chat templates, written as Python's `json.dumps` writes it: models were
//! trained on that spacing.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Deeper than any request; only a template that nests on purpose gets there.
const DEPTH_MAX: usize = 256;

/// A JSON value as a template sees it.
pub fn to_template_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(boolean) => Value::from(*boolean),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => items.iter().map(to_template_value).collect(),
        Json::Object(entries) => Value::from_pairs(
            entries.iter().map(|(key, value)| (key.as_str(), to_template_value(value))),
        ),
    }
}

/// The `tojson` filter with the signature that Hugging Face gives it.
pub fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let mut writer = Writer {
        out: String::new(),
        indent: arguments.get::<Option<usize>>("indent")?.map(|spaces| spaces.min(32)),
        separators: separators(&arguments)?,
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    arguments.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

/// JSON as the filter writes it without arguments.
pub fn to_text(json: &serde_json::Value) -> String {
    let mut writer = Writer {
        out: String::new(),
        indent: None,
        separators: (", ".into(), ": ".into()),
        ensure_ascii: false,
        sort_keys: false,
    };
    match writer.value(&to_template_value(json), 0) {
        Ok(()) => writer.out,
        // Deeper than a request can be.
        Err(_) => json.to_string(),
    }
}

/// What stands between items, and between a key and its value.
fn separators(arguments: &Kwargs) -> Result<(String, String), Error> {
    let Some(given) =
        arguments.get::<Option<Value>>("separators")?.filter(|given| !given.is_none())
    else {
        let indented = arguments.peek::<Option<usize>>("indent")?.is_some();
        return Ok(((if indented { "," } else { ", " }).into(), ": ".into()));
    };
    let part = |index: usize| -> Result<String, Error> {
        let part = given.get_item(&Value::from(index))?;
        part.as_str().map(str::to_owned).ok_or_else(|| invalid("separators must be two strings"))
    };
    Ok((part(0)?, part(1)?))
}

struct Writer {
    out: String,
    indent: Option<usize>,
    separators: (String, String),
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(invalid("the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.array(value, depth)?,
            ValueKind::Map => self.object(value, depth)?,
            other => return Err(invalid(&format!("{other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn array(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let items: Vec<Value> = value.try_iter()?.collect();
        self.out.push('[');
        for (index, item) in items.iter().enumerate() {
            self.before_item(index, depth);
            self.value(item, depth + 1)?;
        }
        self.end(']', items.is_empty(), depth);
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.out.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.before_item(index, depth);
            self.key(key)?;
            self.out.push_str(&self.separators.1);
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.end('}', keys.is_empty(), depth);
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
            }
            other => return Err(invalid(&format!("{other} cannot be a key in JSON"))),
        }
        Ok(())
    }

    fn before_item(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(&self.separators.0);
        }
        self.new_line(depth + 1);
    }

    fn end(&mut self, bracket: char, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            self.out.push_str(&python_float(f64::try_from(value.clone())?));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || (self.ensure_ascii && !character.is_ascii()) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("a String takes everything");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

/// A float as `repr` writes it: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn python_float(float: f64) -> String {
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => format!("{float:?}"),
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(json: serde_json::Value, arguments: &str, expected: &str) {
        let mut environment = Environment::empty();
        environment.add_filter("tojson", tojson);
        let context = Value::from_pairs([("value", to_template_value(&json))]);
        let source = format!("{{{{ value | tojson{arguments} }}}}");
        assert_eq!(environment.render_str(&source, context).unwrap(), expected);
    }

    #[test]
    fn writes_what_json_dumps_writes() {
        let object =
            json!({ "b": [1, -2.0, 1e-5, 1.5e16, 123456.75], "a": { "x": null, "é": true } });
        check(
            object.clone(),
            "",
            r#"{"b": [1, -2.0, 1e-05, 1.5e+16, 123456.75], "a": {"x": null, "é": true}}"#,
        );
        check(
            json!({ "b": [1, []], "a": {} }),
            "(indent=4)",
            "{\n    \"b\": [\n        1,\n        []\n    ],\n    \"a\": {}\n}",
        );
        check(object["a"].clone(), "(ensure_ascii=True)", r#"{"x": null, "\u00e9": true}"#);
        check(json!("😀\u{1}"), "(ensure_ascii=true)", r#""\ud83d\ude00\u0001""#);
        check(json!({ "b": 1, "a": 2 }), "(sort_keys=true)", r#"{"a": 2, "b": 1}"#);
        check(json!([1, { "a": 2 }]), "(separators=(',', ':'))", r#"[1,{"a":2}]"#);
        check(json!("<a href='x'>&\"\\\n\t</a>"), "", r#""<a href='x'>&\"\\\n\t</a>""#);
        check(json!([u64::MAX, i64::MIN]), "", "[18446744073709551615, -9223372036854775808]");
    }
}
