//! Values as Python writes them.

use serde_json::Value;

/// Deeper values are passed on as text.
const DEPTH_MAX: usize = 64;

/// A literal up to the comma or bracket behind it.
#[derive(Debug, Default)]
pub struct PythonValue {
    text: String,
    depth: usize,
    quote: Option<u8>,
    is_escaped: bool,
}

impl PythonValue {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The bytes taken, and whether the literal ended before the next one.
    pub fn feed(&mut self, text: &str) -> (usize, bool) {
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
pub fn to_json(literal: &str) -> String {
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
