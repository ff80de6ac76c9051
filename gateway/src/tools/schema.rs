//! JSON schemas as clients send them, brought into the part of the language that grammars can follow.
//!
//! Annotations are dropped and unknown formats ignored, as JSON Schema has it. What remains unbounded
//! though nobody asked for that gets a bound, so that digits and properties cannot go on for ever:
//! objects without `additionalProperties` are closed where that cannot exclude all values, and numbers
//! have 15 digits before the point, 8 behind it, and no exponent. All values that remain validate against the original.

use serde_json::{Map, Value, json};

/// What cannot be expressed: a keyword and where it stands in the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Such as `properties.a.not`.
    pub place: String,
    /// The rest of a sentence that begins with the place.
    pub what: String,
}

/// Integers that every JSON parser has exactly.
const INTEGER_MAX: i64 = (1 << 53) - 1;
const NUMBER_MAX: f64 = 1e15;
/// The smallest step that the grammar library can express.
const NUMBER_STEP: f64 = 1e-8;
/// What the grammar library counts steps in.
const STEP_DECIMALS_MAX: u32 = 8;
const STEP_DIGITS_MAX: f64 = 1e8;
/// Strings of a format whose pattern has no bound of its own.
const FORMAT_LENGTH_MAX: u64 = 128;
/// How deep values may be nested where any JSON object will do.
const DEPTH_MAX: usize = 12;

const FORMATS: &[&str] =
    &["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
const BOUNDED_FORMATS: &[&str] = &["date", "ipv4", "ipv6", "uuid"];

/// RFC 3339, without the 29th of February and second 60, which are there only now and then.
const DATE: &str = "([1-9][0-9]{3}|0[1-9][0-9]{2})-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])\
                    |(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))";
const TIME: &str = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?\
                    (Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";

/// What describes a value without restricting it.
const ANNOTATIONS: &[&str] = &[
    "$schema",
    "$id",
    "id",
    "$comment",
    "$vocabulary",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "readOnly",
    "writeOnly",
    "deprecated",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "strict",
    "nullable",
    "discriminator",
    "xml",
    "externalDocs",
    "x-guidance",
];
const REFUSED: &[&str] = &[
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "$dynamicRef",
    "$recursiveRef",
];
/// Restrictions that are kept as they are.
const KEPT: &[&str] = &[
    "type",
    "enum",
    "const",
    "required",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
];
const LISTS: &[&str] = &["allOf", "anyOf", "oneOf", "prefixItems"];
const MAPS: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
const SINGLE: &[&str] = &["additionalProperties", "items", "additionalItems"];

/// The schema that a grammar can follow, with the separators of JSON as models write it.
pub fn prepared(schema: &Value) -> Result<Value, Problem> {
    let closes = !combines(schema);
    let preparation = Preparation { root: schema, closes };
    let mut prepared = match preparation.schema(schema, "")? {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err(problem("", "matches nothing")),
        schema if is_any_object(&schema) => any_object(),
        schema => schema,
    };
    prepared["x-guidance"] = separators();
    Ok(prepared)
}

/// How grammars write JSON.
fn separators() -> Value {
    json!({
        "whitespace_flexible": false,
        "item_separator": ", ",
        "key_separator": ": ",
        "coerce_one_of": true,
    })
}

fn is_any_object(schema: &Value) -> bool {
    *schema == json!({ "type": "object" })
}

/// Any object, nested to a bounded depth.
pub fn any_object() -> Value {
    let mut definitions = Map::new();
    for depth in 0..DEPTH_MAX {
        let mut kinds = vec![
            json!({ "type": "string" }),
            bounded_number(),
            json!({ "type": "boolean" }),
            json!({ "type": "null" }),
        ];
        if depth > 0 {
            let inner = json!({ "$ref": format!("#/$defs/depth_{}", depth - 1) });
            kinds.push(json!({ "type": "array", "items": inner }));
            kinds.push(json!({ "type": "object", "additionalProperties": inner }));
        }
        definitions.insert(format!("depth_{depth}"), json!({ "anyOf": kinds }));
    }
    let inner = json!({ "$ref": format!("#/$defs/depth_{}", DEPTH_MAX - 1) });
    json!({
        "type": "object",
        "additionalProperties": inner,
        "$defs": definitions,
        "x-guidance": separators(),
    })
}

fn bounded_number() -> Value {
    json!({
        "type": "number",
        "minimum": -NUMBER_MAX,
        "maximum": NUMBER_MAX,
        "multipleOf": NUMBER_STEP,
    })
}

fn problem(place: &str, what: &str) -> Problem {
    Problem { place: place.to_owned(), what: what.to_owned() }
}

/// Whether some object is described in several places, so that closing one of them excludes what the
/// others ask for.
fn combines(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(combines),
        Value::Object(object) => {
            let several = object.get("allOf").and_then(Value::as_array);
            let is_described = object.contains_key("properties");
            let elsewhere = ["allOf", "anyOf", "oneOf", "$ref"];
            several.is_some_and(|all| all.len() > 1)
                || (is_described && elsewhere.iter().any(|name| object.contains_key(*name)))
                || object.values().any(combines)
        }
        _ => false,
    }
}

struct Preparation<'a> {
    root: &'a Value,
    closes: bool,
}

impl Preparation<'_> {
    fn schema(&self, schema: &Value, place: &str) -> Result<Value, Problem> {
        let object = match schema {
            Value::Object(object) => object,
            Value::Bool(_) => return Ok(schema.clone()),
            _ => return Err(problem(place, "is neither an object nor a boolean")),
        };
        if is_never(object) {
            return Ok(Value::Bool(false));
        }
        let mut prepared = Map::new();
        for (keyword, value) in object {
            if ANNOTATIONS.contains(&keyword.as_str()) {
                continue;
            }
            let place = join(place, keyword);
            if let Some(value) = self.keyword(keyword, value, &place)? {
                prepared.insert(keyword.clone(), value);
            }
        }
        rename_tuples(&mut prepared);
        self.close(&mut prepared);
        bound(&mut prepared);
        Ok(Value::Object(prepared))
    }

    /// `None`: nothing remains of it.
    fn keyword(&self, keyword: &str, value: &Value, place: &str) -> Result<Option<Value>, Problem> {
        if REFUSED.contains(&keyword) {
            let means_nothing = match keyword {
                "uniqueItems" => *value == Value::Bool(false),
                "propertyNames" => *value == json!({ "type": "string" }) || is_any(value),
                "unevaluatedProperties" | "unevaluatedItems" => is_any(value),
                "dependentRequired" | "dependentSchemas" | "dependencies" => {
                    value.as_object().is_some_and(Map::is_empty)
                }
                _ => false,
            };
            let refused = || problem(place, "is not supported");
            return means_nothing.then_some(None).ok_or_else(refused);
        }
        if LISTS.contains(&keyword) {
            return self.list(value, place).map(Some);
        }
        if MAPS.contains(&keyword) {
            return self.map(value, place).map(Some);
        }
        if SINGLE.contains(&keyword) {
            return match value {
                Value::Array(_) => self.list(value, place).map(Some),
                _ => self.schema(value, place).map(Some),
            };
        }
        match (keyword, value) {
            ("format", Value::String(name)) => {
                Ok(FORMATS.contains(&name.as_str()).then(|| value.clone()))
            }
            ("format", _) => Ok(None),
            ("pattern", Value::String(pattern)) => {
                check_pattern(pattern, place)?;
                Ok(Some(value.clone()))
            }
            ("multipleOf", _) => {
                check_step(value, place)?;
                Ok(Some(value.clone()))
            }
            ("$ref", Value::String(reference)) => {
                self.check_reference(reference, place)?;
                Ok(Some(value.clone()))
            }
            _ if KEPT.contains(&keyword) => Ok(Some(value.clone())),
            // What is not known restricts nothing, and what it holds was not looked at.
            _ => Ok(None),
        }
    }

    fn list(&self, value: &Value, place: &str) -> Result<Value, Problem> {
        let items = value.as_array().ok_or_else(|| problem(place, "is not an array"))?;
        let prepare = |(index, item)| self.schema(item, &join(place, &index_text(index)));
        Ok(Value::Array(items.iter().enumerate().map(prepare).collect::<Result<_, _>>()?))
    }

    fn map(&self, value: &Value, place: &str) -> Result<Value, Problem> {
        let entries = value.as_object().ok_or_else(|| problem(place, "is not an object"))?;
        let mut prepared = Map::new();
        for (name, schema) in entries {
            if place.ends_with("patternProperties") {
                check_pattern(name, &join(place, name))?;
            }
            prepared.insert(name.clone(), self.schema(schema, &join(place, name))?);
        }
        Ok(Value::Object(prepared))
    }

    fn check_reference(&self, reference: &str, place: &str) -> Result<(), Problem> {
        let Some(pointer) = reference.strip_prefix('#') else {
            return Err(problem(place, "refers to another document"));
        };
        let is_pointer = pointer.is_empty() || pointer.starts_with('/');
        let mut target = is_pointer.then(|| self.root.pointer(pointer)).flatten();
        // A chain of references that comes back to itself matches nothing that is finite.
        for _ in 0..64 {
            let Some(schema) = target else {
                return Err(problem(place, "refers to what is not there"));
            };
            let Some(next) = schema.get("$ref").and_then(Value::as_str) else { return Ok(()) };
            let pointer = next.strip_prefix('#');
            target = pointer.and_then(|pointer| self.root.pointer(pointer));
        }
        Err(problem(place, "refers to itself"))
    }

    fn close(&self, schema: &mut Map<String, Value>) {
        // Also where there are none: that is how functions without arguments are described.
        let has_properties = schema.get("properties").is_some_and(Value::is_object);
        let says = ["additionalProperties", "patternProperties", "minProperties", "maxProperties"];
        if self.closes && has_properties && !says.iter().any(|name| schema.contains_key(*name)) {
            // Names that are required and not described would have no value.
            let properties = schema["properties"].clone();
            let required = schema.get("required").and_then(Value::as_array);
            let is_described =
                |name: &Value| name.as_str().is_some_and(|n| properties.get(n).is_some());
            if required.is_none_or(|names| names.iter().all(is_described)) {
                schema.insert("additionalProperties".into(), Value::Bool(false));
            }
        }
    }
}

fn join(place: &str, name: &str) -> String {
    if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") }
}

fn index_text(index: usize) -> String {
    index.to_string()
}

fn is_any(schema: &Value) -> bool {
    *schema == Value::Bool(true) || *schema == json!({})
}

/// `{"not": {}}` is how some libraries write `false`.
fn is_never(schema: &Map<String, Value>) -> bool {
    schema.len() == 1 && schema.get("not").is_some_and(is_any)
}

/// The library's sums would overflow beyond that.
fn check_step(step: &Value, place: &str) -> Result<(), Problem> {
    let mut digits = step.as_f64().unwrap_or_default();
    if digits <= 0.0 {
        return Err(problem(place, "is not a positive number"));
    }
    let mut decimals = 0;
    while digits.fract() != 0.0 && decimals <= STEP_DECIMALS_MAX {
        (digits, decimals) = (digits * 10.0, decimals + 1);
    }
    if decimals > STEP_DECIMALS_MAX || digits > STEP_DIGITS_MAX {
        return Err(problem(place, "has more than 8 digits, which is not supported"));
    }
    Ok(())
}

fn check_pattern(pattern: &str, place: &str) -> Result<(), Problem> {
    for look_around in ["(?=", "(?!", "(?<=", "(?<!"] {
        if pattern.contains(look_around) {
            return Err(problem(place, &format!("uses '{look_around}', which is not supported")));
        }
    }
    Ok(())
}

/// `items` as a list is what `prefixItems` is now.
fn rename_tuples(schema: &mut Map<String, Value>) {
    if !schema.get("items").is_some_and(Value::is_array) {
        schema.remove("additionalItems");
        return;
    }
    let rest = schema.remove("additionalItems");
    if let Some(items) = schema.remove("items") {
        schema.insert("prefixItems".into(), items);
    }
    schema.extend(rest.map(|rest| ("items".to_owned(), rest)));
}

/// Dates and times as patterns: the library's formats have days and seconds that mostly do not exist,
/// and any number of digits.
fn spell_out_format(schema: &mut Map<String, Value>) {
    let pattern = match schema.get("format").and_then(Value::as_str) {
        Some("date") => DATE.to_owned(),
        Some("time") => TIME.to_owned(),
        Some("date-time") => format!("{DATE}T{TIME}"),
        _ => return,
    };
    if !schema.contains_key("pattern") {
        schema.remove("format");
        schema.insert("pattern".into(), json!(format!("^{pattern}$")));
    }
}

/// Bounds the digits of numbers and the length of formats.
fn bound(schema: &mut Map<String, Value>) {
    spell_out_format(schema);
    let has_kind = |kind: &str| match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        Some(one) => one == kind,
        None => false,
    };
    let is_listed = schema.contains_key("enum") || schema.contains_key("const");
    let (integer, number) = (has_kind("integer"), has_kind("number"));
    let format = schema.get("format").and_then(Value::as_str);
    if format.is_some_and(|format| !BOUNDED_FORMATS.contains(&format))
        && !schema.contains_key("maxLength")
    {
        let length = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0);
        schema.insert("maxLength".into(), json!(length.max(FORMAT_LENGTH_MAX)));
    }
    if is_listed || !(integer || number) {
        return;
    }
    let limit = if number { NUMBER_MAX } else { INTEGER_MAX as f64 };
    let limit_json = |sign: i64| match number {
        true => json!(sign as f64 * NUMBER_MAX),
        false => json!(sign * INTEGER_MAX),
    };
    let minimum = given_bound(schema, ["minimum", "exclusiveMinimum"]);
    let maximum = given_bound(schema, ["maximum", "exclusiveMaximum"]);
    if minimum.is_none() && maximum.is_none_or(|maximum| maximum > -limit) {
        schema.insert("minimum".into(), limit_json(-1));
    }
    if maximum.is_none() && minimum.is_none_or(|minimum| minimum < limit) {
        schema.insert("maximum".into(), limit_json(1));
    }
    let is_narrow = matches!((minimum, maximum), (Some(low), Some(high)) if high - low < 1e-6);
    if number && !schema.contains_key("multipleOf") && !is_narrow {
        schema.insert("multipleOf".into(), json!(NUMBER_STEP));
    }
}

/// The first of two keywords that is a number; the older drafts have booleans for the second one.
fn given_bound(schema: &Map<String, Value>, names: [&str; 2]) -> Option<f64> {
    names.iter().find_map(|name| schema.get(*name).and_then(Value::as_f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schema: Value, expected: Value) {
        let mut prepared = prepared(&schema).unwrap();
        prepared.as_object_mut().unwrap().remove("x-guidance");
        assert_eq!(prepared, expected, "{schema}");
    }

    #[test]
    fn drops_what_does_not_restrict_and_bounds_what_does_not_end() {
        check(
            json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x",
                "title": "T", "type": "object", "strict": true, "properties": {
                    "title": { "type": "string", "default": "a", "format": "color" },
                    "id": { "type": "integer", "minimum": 0 } } }),
            json!({ "type": "object", "additionalProperties": false, "properties": {
                "title": { "type": "string" },
                "id": { "type": "integer", "minimum": 0, "maximum": INTEGER_MAX } } }),
        );
        check(
            json!({ "type": "string", "format": "uri" }),
            json!({ "type": "string", "format": "uri", "maxLength": 128 }),
        );
        check(
            json!({ "type": "string", "format": "date" }),
            json!({ "type": "string", "pattern": format!("^{DATE}$") }),
        );
        check(
            json!({ "type": "string", "format": "time", "pattern": "^1" }),
            json!({ "type": "string", "format": "time", "pattern": "^1", "maxLength": 128 }),
        );
        check(
            json!({ "type": "array", "items": [{ "type": "boolean" }], "additionalItems": false }),
            json!({ "type": "array", "prefixItems": [{ "type": "boolean" }], "items": false }),
        );
        check(json!({ "type": "number" }), bounded_number());
        check(
            json!({ "type": "number", "enum": [1e-20] }),
            json!({ "type": "number", "enum": [1e-20] }),
        );
        let open =
            json!({ "type": "object", "properties": { "a": {} }, "additionalProperties": true });
        check(open.clone(), open);
        let all = json!({ "allOf": [{ "type": "object", "properties": { "a": {} } },
            { "type": "object", "properties": { "b": {} } }] });
        check(all.clone(), all);
        check(json!({ "items": { "not": {} }, "uniqueItems": false }), json!({ "items": false }));
        check(json!(true), json!({}));
    }

    #[test]
    fn names_what_cannot_be_expressed() {
        #[track_caller]
        fn check(schema: Value, place: &str, what: &str) {
            assert_eq!(prepared(&schema), Err(problem(place, what)), "{schema}");
        }
        let inside = |schema: Value| json!({ "properties": { "a": { "items": schema } } });
        let unsupported = "is not supported";
        check(inside(json!({ "not": { "type": "null" } })), "properties.a.items.not", unsupported);
        check(json!({ "type": "array", "uniqueItems": true }), "uniqueItems", unsupported);
        check(json!({ "anyOf": [{}, { "if": {} }] }), "anyOf.1.if", unsupported);
        check(json!({ "anyOf": {} }), "anyOf", "is not an array");
        check(json!({ "items": 1 }), "items", "is neither an object nor a boolean");
        check(json!({ "$ref": "https://a/b" }), "$ref", "refers to another document");
        check(json!({ "$ref": "#/$defs/a" }), "$ref", "refers to what is not there");
        check(json!({ "$ref": "#" }), "$ref", "refers to itself");
        let cycle = json!({ "$ref": "#/$defs/a",
            "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } });
        check(cycle, "$ref", "refers to itself");
        check(json!({ "pattern": "a(?=b)" }), "pattern", "uses '(?=', which is not supported");
        check(json!(false), "", "matches nothing");
        check(json!({ "multipleOf": 0 }), "multipleOf", "is not a positive number");
        check(
            json!({ "multipleOf": 1e-9 }),
            "multipleOf",
            "has more than 8 digits, which is not supported",
        );
        assert!(prepared(&json!({ "multipleOf": 0.01 })).is_ok());
    }
}
