//! Calls as Python: `[f(a=1, b="x"), g()]`, the whole answer or between Llama 4's markers. Arguments
//! become JSON one by one.

use serde_json::Value;

use super::markers::{Prefix, leading_space_bytes, prefix};
use super::output::{NAME_BYTES_MAX, Output};

pub const OPEN: &str = "<|python_start|>";
pub const CLOSE: &str = "<|python_end|>";

/// Deeper values are passed on as text.
const DEPTH_MAX: usize = 64;

/// Parses calls.
#[derive(Debug, Default)]
pub struct PythonicCalls {
    state: State,
    /// Arguments of this call so far.
    arguments: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Start,
    List,
    Function(String),
    ArgumentOrEnd,
    Argument(String),
    Value(PythonValue),
    AfterValue,
    AfterCall,
    AfterList,
    Text,
}

impl PythonicCalls {
    /// The bytes taken of a text, `None` if more must come first.
    pub fn step(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        match &mut self.state {
            State::Text => {
                output.content(text);
                return Some(text.len());
            }
            State::Function(_) => return Some(self.function(text, output)),
            State::Argument(_) => return Some(self.argument(text, output)),
            State::Value(value) => {
                let (bytes, is_whole) = value.feed(text);
                if is_whole {
                    output.arguments(&to_json(&value.text));
                    self.state = State::AfterValue;
                }
                return Some(bytes);
            }
            _ => {}
        }
        let space = leading_space_bytes(text);
        let rest = &text[space..];
        if matches!(self.state, State::Start | State::List) {
            output.hold(&text[..space]);
        }
        let Some(next) = rest.chars().next() else { return Some(space) };
        let bytes = match &self.state {
            State::Start | State::AfterList => {
                let marker = if matches!(self.state, State::Start) { OPEN } else { CLOSE };
                match prefix(rest, marker, is_end) {
                    Prefix::Partial => return (space > 0).then_some(space),
                    Prefix::Whole => self.marker(marker, output),
                    Prefix::No => self.punctuation(next, output),
                }
            }
            _ => self.punctuation(next, output),
        };
        Some(space + bytes)
    }

    fn marker(&mut self, marker: &str, output: &mut Output) -> usize {
        match marker {
            OPEN => output.hold(OPEN),
            _ => self.fail(output),
        }
        marker.len()
    }

    /// What is held was content, and the rest is.
    fn fail(&mut self, output: &mut Output) {
        output.release();
        self.state = State::Text;
    }

    fn punctuation(&mut self, next: char, output: &mut Output) -> usize {
        let state = match (&self.state, next) {
            (State::Start, '[') => {
                output.hold("[");
                State::List
            }
            (State::List, _) if is_of_name(next) => {
                self.state = State::Function(String::new());
                return 0;
            }
            (State::ArgumentOrEnd, _) if is_of_name(next) => {
                self.state = State::Argument(String::new());
                return 0;
            }
            (State::ArgumentOrEnd | State::AfterValue, ')') => {
                output.arguments("}");
                State::AfterCall
            }
            (State::AfterValue, ',') => State::ArgumentOrEnd,
            (State::AfterCall, ',') => {
                output.hold(",");
                State::List
            }
            (State::AfterCall, ']') => State::AfterList,
            _ => {
                self.fail(output);
                return 0;
            }
        };
        self.state = state;
        1
    }

    fn function(&mut self, text: &str, output: &mut Output) -> usize {
        let State::Function(name) = &mut self.state else { return 0 };
        let bytes = text.find(|next| !is_of_name(next)).unwrap_or(text.len());
        name.push_str(&text[..bytes]);
        output.hold(&text[..bytes]);
        match text[bytes..].chars().next() {
            None if name.len() <= NAME_BYTES_MAX => bytes,
            Some('(') if output.accepts(name, true) => {
                output.call(name);
                output.arguments("{");
                (self.state, self.arguments) = (State::ArgumentOrEnd, 0);
                bytes + 1
            }
            _ => {
                self.fail(output);
                bytes
            }
        }
    }

    fn argument(&mut self, text: &str, output: &mut Output) -> usize {
        let State::Argument(name) = &mut self.state else { return 0 };
        let bytes = text.find(|next| !is_of_name(next)).unwrap_or(text.len());
        name.push_str(&text[..bytes]);
        output.hold(&text[..bytes]);
        match text[bytes..].chars().next() {
            None if name.len() <= NAME_BYTES_MAX => bytes,
            Some('=') if name.len() <= NAME_BYTES_MAX => {
                output.forget();
                let separator = if self.arguments > 0 { ", " } else { "" };
                output.arguments(&format!("{separator}\"{name}\": "));
                self.arguments += 1;
                self.state = State::Value(PythonValue::default());
                bytes + 1
            }
            _ => {
                self.fail(output);
                bytes
            }
        }
    }
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.')
}

/// A literal up to the comma or bracket behind it.
#[derive(Debug, Default)]
struct PythonValue {
    text: String,
    depth: usize,
    quote: Option<u8>,
    is_escaped: bool,
}

impl PythonValue {
    fn feed(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            match (byte, self.quote) {
                _ if self.is_escaped => self.is_escaped = false,
                (b'\\', Some(_)) => self.is_escaped = true,
                (_, Some(quote)) if byte == quote => self.quote = None,
                (_, Some(_)) => {}
                (b'"' | b'\'', None) => self.quote = Some(byte),
                (b',' | b')', None) if self.depth == 0 => {
                    self.text.push_str(&text[..at]);
                    return (at, true);
                }
                (b'(' | b'[' | b'{', None) => self.depth += 1,
                (b')' | b']' | b'}', None) => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.text.push_str(text);
        (text.len(), false)
    }
}

/// JSON of a literal; of anything else, of its text.
fn to_json(literal: &str) -> String {
    let mut reader = Reader { text: literal.trim() };
    let value = reader.value(0).filter(|_| reader.text.is_empty());
    value.unwrap_or_else(|| Value::from(literal.trim())).to_string()
}

/// Reads Python literals, and JSON's constants.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.text = self.text.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        let rest = self.text.strip_prefix(token);
        self.text = rest.unwrap_or(self.text);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.space();
        match self.text.chars().next()? {
            '"' | '\'' => self.string().map(Value::from),
            '[' => self.list('[', "]", depth),
            '(' => self.list('(', ")", depth),
            '{' => self.dictionary(depth),
            _ => self.scalar(),
        }
    }

    fn list(&mut self, open: char, close: &str, depth: usize) -> Option<Value> {
        self.text = &self.text[open.len_utf8()..];
        let mut items = Vec::new();
        while !self.take(close) {
            items.push(self.value(depth + 1)?);
            if !self.take(",") {
                self.take(close).then_some(())?;
                break;
            }
        }
        Some(Value::from(items))
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.text = &self.text[1..];
        let mut entries = serde_json::Map::new();
        while !self.take("}") {
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            self.take(":").then_some(())?;
            entries.insert(key, self.value(depth + 1)?);
            if !self.take(",") {
                self.take("}").then_some(())?;
                break;
            }
        }
        Some(Value::Object(entries))
    }

    fn scalar(&mut self) -> Option<Value> {
        let ends = |next: char| next.is_whitespace() || matches!(next, ',' | ']' | ')' | '}' | ':');
        let end = self.text.find(ends).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(end);
        self.text = rest;
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            _ => serde_json::from_str::<serde_json::Number>(word).ok().map(Value::Number),
        }
    }

    fn string(&mut self) -> Option<String> {
        let mut characters = self.text.chars();
        let quote = characters.next()?;
        let mut text = String::new();
        loop {
            match characters.next()? {
                next if next == quote => break,
                '\\' => escape(&mut characters, &mut text)?,
                next => text.push(next),
            }
        }
        self.text = characters.as_str();
        Some(text)
    }
}

/// What follows a backslash.
fn escape(characters: &mut std::str::Chars, text: &mut String) -> Option<()> {
    let digits = |characters: &mut std::str::Chars, count: usize| {
        let digits: String = characters.take(count).collect();
        u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == count)
    };
    let character = match characters.next()? {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        '\n' => return Some(()),
        'x' => char::from_u32(digits(characters, 2)?)?,
        'u' => {
            let first = digits(characters, 4)?;
            if (0xD800..0xDC00).contains(&first) {
                (characters.next()? == '\\' && characters.next()? == 'u').then_some(())?;
                let second = digits(characters, 4)?;
                char::decode_utf16([first as u16, second as u16]).next()?.ok()?
            } else {
                char::from_u32(first)?
            }
        }
        quoted @ ('\\' | '\'' | '"' | '/') => quoted,
        other => {
            text.push('\\');
            other
        }
    };
    text.push(character);
    Some(())
}
