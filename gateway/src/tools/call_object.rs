//! A call as a JSON object: `{"name": "f", "arguments": {…}}`, its keys in any order.

use super::json_scanner::{JsonScanner, Scan, unescape};
use super::markers::leading_space_bytes;
use super::output::{NAME_BYTES_MAX, Output};

/// Longer keys are not those of a call.
const KEY_BYTES_MAX: usize = 16;
/// Each character may be escaped.
const ESCAPED_NAME_BYTES_MAX: usize = 6 * NAME_BYTES_MAX;

/// A call of which only the beginning may have come.
#[derive(Debug)]
pub struct CallObject {
    state: State,
    must_be_known: bool,
    is_announced: bool,
    has_arguments: bool,
    /// Those that came before the name.
    early_arguments: String,
}

#[derive(Debug)]
enum State {
    Brace,
    KeyOrEnd,
    Key(JsonString),
    Colon(Field),
    Value(Field),
    Name(JsonString),
    ArgumentsInString(JsonString),
    Arguments(JsonScanner),
    Other(JsonScanner),
    AfterValue,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Name,
    Arguments,
    Other,
}

/// What an object came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    More,
    /// It was a call and ended.
    Done,
    /// It is no call.
    Failed,
}

impl CallObject {
    /// `must_be_known`: only the names of the request's tools are calls.
    pub fn new(must_be_known: bool) -> Self {
        let state = State::Brace;
        let early_arguments = String::new();
        Self { state, must_be_known, is_announced: false, has_arguments: false, early_arguments }
    }

    /// Goes on by some bytes. What is not known to be of a call is held.
    pub fn feed(&mut self, text: &str, output: &mut Output) -> (usize, Progress) {
        let (mut at, mut held) = (0, 0);
        loop {
            let (bytes, progress) = self.step(&text[at..], output);
            at += bytes;
            // What was held before belongs to the call now, and so does this.
            if self.is_announced {
                held = at;
            }
            match progress {
                Some(progress) => {
                    output.hold(&text[held..at]);
                    return (at, self.outcome(progress, output));
                }
                None if at == text.len() => {
                    output.hold(&text[held..at]);
                    return (at, Progress::More);
                }
                None => {}
            }
        }
    }

    /// No text comes any more.
    pub fn finish(&mut self, output: &mut Output) {
        if let State::ArgumentsInString(string) = &self.state {
            let text = unescape(&string.inner);
            self.arguments(&text, output);
        }
    }

    fn outcome(&self, progress: Progress, output: &mut Output) -> Progress {
        if !self.is_announced {
            return Progress::Failed;
        }
        if progress == Progress::Done && !self.has_arguments {
            output.arguments("{}");
        }
        Progress::Done
    }

    /// The bytes taken, and whether the object is over. Takes all of the text or changes its state.
    fn step(&mut self, text: &str, output: &mut Output) -> (usize, Option<Progress>) {
        match &mut self.state {
            State::Key(string) | State::Name(string) | State::ArgumentsInString(string) => {
                match string.feed(text) {
                    (bytes, Scan::More) => (bytes, None),
                    (bytes, Scan::Done) => (bytes, self.string_ended(output)),
                    (bytes, Scan::Broken) => (bytes, Some(Progress::Failed)),
                }
            }
            State::Arguments(scanner) => {
                let (bytes, scan) = scanner.feed(text);
                self.arguments(&text[..bytes], output);
                (bytes, self.value_ended(scan))
            }
            State::Other(scanner) => {
                let (bytes, scan) = scanner.feed(text);
                (bytes, self.value_ended(scan))
            }
            _ => {
                let space = leading_space_bytes(text);
                match text[space..].chars().next() {
                    None => (space, None),
                    Some(next) => {
                        let (bytes, progress) = self.punctuation(next);
                        (space + bytes, progress)
                    }
                }
            }
        }
    }

    fn punctuation(&mut self, next: char) -> (usize, Option<Progress>) {
        let (state, bytes) = match (&self.state, next) {
            (State::Brace, '{') => (State::KeyOrEnd, 1),
            (State::KeyOrEnd | State::AfterValue, '}') => return (1, Some(Progress::Done)),
            (State::KeyOrEnd, '"') => (State::Key(JsonString::new(KEY_BYTES_MAX)), 1),
            (State::Colon(field), ':') => (State::Value(*field), 1),
            (State::Value(Field::Name), '"') => {
                (State::Name(JsonString::new(ESCAPED_NAME_BYTES_MAX)), 1)
            }
            (State::Value(Field::Name), _) => return (0, Some(Progress::Failed)),
            (State::Value(Field::Arguments), '"') => {
                (State::ArgumentsInString(JsonString::new(usize::MAX)), 1)
            }
            (State::Value(Field::Arguments), _) => (State::Arguments(JsonScanner::default()), 0),
            (State::Value(Field::Other), _) => (State::Other(JsonScanner::default()), 0),
            (State::AfterValue, ',') => (State::KeyOrEnd, 1),
            _ => return (0, Some(Progress::Failed)),
        };
        self.state = state;
        (bytes, None)
    }

    fn string_ended(&mut self, output: &mut Output) -> Option<Progress> {
        match std::mem::replace(&mut self.state, State::AfterValue) {
            State::Key(key) => match field(&unescape(&key.inner)) {
                Some(Field::Arguments) if self.has_arguments => {
                    self.state = State::Colon(Field::Other);
                }
                Some(field) => self.state = State::Colon(field),
                None if self.is_announced => self.state = State::Colon(Field::Other),
                None => return Some(Progress::Failed),
            },
            State::Name(name) if !self.is_announced => {
                let name = unescape(&name.inner);
                if !output.accepts(&name, self.must_be_known) {
                    return Some(Progress::Failed);
                }
                self.is_announced = true;
                output.call(&name);
                let early = std::mem::take(&mut self.early_arguments);
                output.arguments(&early);
            }
            State::ArgumentsInString(string) => {
                self.arguments(&unescape(&string.inner), output);
            }
            _ => {}
        }
        None
    }

    fn arguments(&mut self, text: &str, output: &mut Output) {
        self.has_arguments = true;
        match self.is_announced {
            true => output.arguments(text),
            false => self.early_arguments.push_str(text),
        }
    }

    fn value_ended(&mut self, scan: Scan) -> Option<Progress> {
        match scan {
            Scan::More => None,
            Scan::Broken => Some(Progress::Failed),
            Scan::Done => {
                self.state = State::AfterValue;
                None
            }
        }
    }
}

/// What a key of a call is for. `None`: calls have no such key.
fn field(key: &str) -> Option<Field> {
    match key {
        "name" => Some(Field::Name),
        "arguments" | "parameters" => Some(Field::Arguments),
        "id" | "type" | "index" => Some(Field::Other),
        _ => None,
    }
}

/// The inner of a string, escapes and all.
#[derive(Debug)]
struct JsonString {
    inner: String,
    is_escaped: bool,
    bytes_max: usize,
}

impl JsonString {
    fn new(bytes_max: usize) -> Self {
        Self { inner: String::new(), is_escaped: false, bytes_max }
    }

    /// The bytes taken, and whether the string ended, or is broken because it is too long.
    fn feed(&mut self, text: &str) -> (usize, Scan) {
        let room = self.bytes_max - self.inner.len();
        for (at, next) in text.char_indices() {
            match next {
                '"' if !self.is_escaped => {
                    self.inner.push_str(&text[..at]);
                    return (at + 1, Scan::Done);
                }
                _ if at + next.len_utf8() > room => return (at, Scan::Broken),
                _ => self.is_escaped = next == '\\' && !self.is_escaped,
            }
        }
        self.inner.push_str(text);
        (text.len(), Scan::More)
    }
}
