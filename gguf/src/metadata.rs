//! The metadata of a file: values by key, and typed access to them.

use std::collections::HashMap;

use crate::cursor::Cursor;
use crate::error::Problem;

/// A value as the file has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An integer of any width that is not below zero.
    Unsigned(u64),
    /// An integer below zero.
    Negative(i64),
    /// A float of either width.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text; not checked to be UTF-8.
    Text(&'a [u8]),
    /// Many values of one kind.
    Array(Array<'a>),
}

/// Values of one kind, left where they lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    count: usize,
    bytes: &'a [u8],
}

/// What a value is, by its number in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Problem> {
        let number = cursor.u32()?;
        let kind = KINDS.get(number as usize).copied();
        kind.ok_or_else(|| Problem::corrupt(format!("its metadata has a value of kind {number}")))
    }

    /// Bytes of a value, or of a text's length.
    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }

    fn value<'a>(self, cursor: &mut Cursor<'a>) -> Result<Value<'a>, Problem> {
        Ok(match self {
            Self::U8 => Value::Unsigned(cursor.array::<1>()?[0].into()),
            Self::I8 => Value::integer(cursor.array().map(i8::from_le_bytes)?.into()),
            Self::U16 => Value::Unsigned(cursor.array().map(u16::from_le_bytes)?.into()),
            Self::I16 => Value::integer(cursor.array().map(i16::from_le_bytes)?.into()),
            Self::U32 => Value::Unsigned(cursor.u32()?.into()),
            Self::I32 => Value::integer(cursor.array().map(i32::from_le_bytes)?.into()),
            Self::F32 => Value::Float(cursor.array().map(f32::from_le_bytes)?.into()),
            Self::Bool => Value::Bool(cursor.array::<1>()?[0] != 0),
            Self::Text => Value::Text(cursor.string()?),
            Self::Array => Value::Array(Array::read(cursor)?),
            Self::U64 => Value::Unsigned(cursor.u64()?),
            Self::I64 => Value::integer(cursor.array().map(i64::from_le_bytes)?),
            Self::F64 => Value::Float(cursor.array().map(f64::from_le_bytes)?),
        })
    }
}

impl<'a> Value<'a> {
    pub(crate) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        Kind::read(cursor)?.value(cursor)
    }

    fn integer(value: i64) -> Self {
        u64::try_from(value).map_or(Self::Negative(value), Self::Unsigned)
    }
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        let kind = Kind::read(cursor)?;
        if kind == Kind::Array {
            return Err(Problem::corrupt("its metadata has an array of arrays"));
        }
        let count = cursor.u64()?;
        let too_many = || {
            let problem = format!("it ends within an array of {count} values: truncated");
            Problem::Corrupt(problem)
        };
        let count = usize::try_from(count).map_err(|_| too_many())?;
        let bytes = count.checked_mul(kind.bytes()).ok_or_else(too_many)?;
        if bytes > cursor.left() {
            return Err(too_many());
        }
        let all = *cursor;
        if kind == Kind::Text {
            for _ in 0..count {
                cursor.string()?;
            }
        } else {
            cursor.bytes(bytes as u64)?;
        }
        let bytes = all.clone().bytes((all.left() - cursor.left()) as u64)?;
        Ok(Self { kind, count, bytes })
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut cursor) = (self.kind, Cursor::new(self.bytes));
        (0..self.count)
            .map(move |_| kind.value(&mut cursor).expect("the array was walked at parse"))
    }
}

/// The metadata of a file. The methods give `None` for keys that are not there.
#[derive(Debug, Default)]
pub struct Metadata<'a> {
    pub(crate) values: HashMap<&'a str, Value<'a>>,
}

impl<'a> Metadata<'a> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).copied()
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, Problem> {
        self.scalar(key, "an integer from 0", as_unsigned)
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>, Problem> {
        self.scalar(key, "a number", as_float)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, Problem> {
        self.scalar(key, "true or false", as_bool)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        self.scalar(key, "text", as_text)
    }

    pub(crate) fn array<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Problem> {
        let wrong = || Problem::corrupt(format!("metadata {key} is not {expected}"));
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                let converted: Option<Vec<T>> = array.values().map(convert).collect();
                converted.map(Some).ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    fn scalar<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || Problem::corrupt(format!("metadata {key} is not {expected}"));
        convert(value).map(Some).ok_or_else(wrong)
    }
}

pub(crate) fn as_unsigned(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Unsigned(value) => Some(value),
        _ => None,
    }
}

pub(crate) fn as_float(value: Value<'_>) -> Option<f32> {
    match value {
        Value::Float(value) => Some(value as f32),
        Value::Unsigned(value) => Some(value as f32),
        _ => None,
    }
}

pub(crate) fn as_bool(value: Value<'_>) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(value),
        Value::Unsigned(value) => Some(value != 0),
        _ => None,
    }
}

pub(crate) fn as_text(value: Value<'_>) -> Option<&str> {
    match value {
        Value::Text(text) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}
