//! Typed reading of a JSON object, with OpenAI's wording for what does not fit.

use std::ops::RangeInclusive;

use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// A JSON object and where it stands in the request.
#[derive(Clone)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Empty for the request itself, else such as `messages[0].`.
    prefix: String,
}

impl<'a> Fields<'a> {
    /// The request body.
    pub fn of_body(body: &'a Value) -> Result<Fields<'a>, ApiError> {
        let object = body.as_object().ok_or_else(|| ApiError::body_not_object(kind_of(body)))?;
        Ok(Fields { object, prefix: String::new() })
    }

    /// A value inside of the request, named `path` in errors.
    pub fn of(value: &'a Value, path: &str) -> Result<Fields<'a>, ApiError> {
        let object = value.as_object().ok_or_else(|| wrong_type(path, "an object", value))?;
        Ok(Fields { object, prefix: format!("{path}.") })
    }

    /// The full path of a field, as errors name it.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The value of a field; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The value of a field that must be there.
    pub fn require(&self, name: &str) -> Result<&'a Value, ApiError> {
        self.get(name).ok_or_else(|| ApiError::missing(&self.path(name)))
    }

    pub fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn require_string(&self, name: &str) -> Result<&'a str, ApiError> {
        self.string(name)?.ok_or_else(|| ApiError::missing(&self.path(name)))
    }

    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", Value::as_bool)
    }

    pub fn array(&self, name: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.typed(name, "an array", Value::as_array)
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name).map(|value| Fields::of(value, &self.path(name))).transpose()
    }

    /// All fields with their names, including those that are null.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&'a String, &'a Value)> {
        self.object.iter()
    }

    /// An integer within `range`.
    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.get(name).map(|value| integer(value, range, || self.path(name))).transpose()
    }

    /// An integer of `minimum..=u32::MAX`.
    pub fn count(&self, name: &str, minimum: u32) -> Result<Option<u32>, ApiError> {
        let value = self.integer(name, i64::from(minimum)..=i64::from(u32::MAX))?;
        Ok(value.map(|value| u32::try_from(value).expect("the range is that of u32")))
    }

    /// A number within `range`.
    pub fn decimal(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        self.get(name).map(|value| decimal(value, range, || self.path(name))).transpose()
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let read = |value| read(value).ok_or_else(|| wrong_type(&self.path(name), expected, value));
        self.get(name).map(read).transpose()
    }
}

/// An integer within `range`; `5.0` is one. `path` is only made for an error, since arrays of
/// token ids are read with this.
pub fn integer(
    value: &Value,
    range: RangeInclusive<i64>,
    path: impl Fn() -> String,
) -> Result<i64, ApiError> {
    let Value::Number(number) = value else {
        return Err(wrong_type(&path(), "an integer", value));
    };
    let Some(integer) = integral(number) else {
        return Err(ApiError::invalid_type(&path(), "an integer", "a decimal number"));
    };
    if integer > i128::from(*range.end()) {
        return Err(ApiError::above_maximum(&path(), "integer", range.end(), number));
    }
    if integer < i128::from(*range.start()) {
        return Err(ApiError::below_minimum(&path(), "integer", range.start(), number));
    }
    Ok(i64::try_from(integer).expect("the range is within i64"))
}

/// A number within `range`, which is checked before the precision is reduced.
pub fn decimal(
    value: &Value,
    range: RangeInclusive<f64>,
    path: impl Fn() -> String,
) -> Result<f32, ApiError> {
    let Some(number) = value.as_f64() else {
        return Err(wrong_type(&path(), "a decimal", value));
    };
    if number > *range.end() {
        return Err(ApiError::above_maximum(&path(), "decimal", range.end(), value));
    }
    if number < *range.start() {
        return Err(ApiError::below_minimum(&path(), "decimal", range.start(), value));
    }
    Ok(number as f32)
}

/// The error for a value of another type than `expected`.
pub fn wrong_type(path: &str, expected: &str, value: &Value) -> ApiError {
    ApiError::invalid_type(path, expected, kind_of(value))
}

fn integral(number: &Number) -> Option<i128> {
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    // The cast saturates, which keeps huge numbers out of every range.
    number.as_f64().filter(|float| float.fract() == 0.0).map(|float| float as i128)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_integers() {
        #[track_caller]
        fn check(value: Value, expected: Result<Option<i64>, &str>) {
            let body = json!({ "n": value });
            let got = Fields::of_body(&body).unwrap().integer("n", 1..=128);
            assert_eq!(got.map_err(|error| error.message), expected.map_err(str::to_owned));
        }
        check(json!(null), Ok(None));
        check(json!(1), Ok(Some(1)));
        check(json!(5.0), Ok(Some(5)));
        check(
            json!(5.5),
            Err("Invalid type for 'n': expected an integer, but got a decimal number instead."),
        );
        check(
            json!("5"),
            Err("Invalid type for 'n': expected an integer, but got a string instead."),
        );
        check(
            json!(true),
            Err("Invalid type for 'n': expected an integer, but got a boolean instead."),
        );
        check(
            json!(129),
            Err("Invalid 'n': integer above maximum value. \
                 Expected a value <= 128, but got 129 instead."),
        );
        check(
            json!(u64::MAX),
            Err("Invalid 'n': integer above maximum value. \
                 Expected a value <= 128, but got 18446744073709551615 instead."),
        );
        check(
            json!(1e300),
            Err("Invalid 'n': integer above maximum value. \
                 Expected a value <= 128, but got 1e+300 instead."),
        );
        check(
            json!(0),
            Err("Invalid 'n': integer below minimum value. \
                 Expected a value >= 1, but got 0 instead."),
        );
    }

    #[test]
    fn reads_decimals() {
        #[track_caller]
        fn check(value: Value, expected: Result<Option<f32>, &str>) {
            let body = json!({ "outer": { "x": value } });
            let outer = Fields::of_body(&body).unwrap().object("outer").unwrap().unwrap();
            let got = outer.decimal("x", -2.0..=2.0);
            assert_eq!(got.map_err(|error| error.message), expected.map_err(str::to_owned));
        }
        check(json!(null), Ok(None));
        check(json!(2), Ok(Some(2.0)));
        check(json!(-0.5), Ok(Some(-0.5)));
        check(
            json!(2.5),
            Err("Invalid 'outer.x': decimal above maximum value. \
                 Expected a value <= 2, but got 2.5 instead."),
        );
        check(
            json!([]),
            Err("Invalid type for 'outer.x': expected a decimal, but got an array instead."),
        );
    }

    #[test]
    fn names_what_is_missing_or_no_object() {
        let body = json!({ "model": null });
        let fields = Fields::of_body(&body).unwrap();
        assert_eq!(fields.require_string("model"), Err(ApiError::missing("model")));
        assert!(Fields::of_body(&json!([])).is_err());
        assert!(Fields::of(&json!(1), "messages[0]").is_err());
    }
}
