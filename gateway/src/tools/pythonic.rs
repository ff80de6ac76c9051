//! Calls as Python: `[f(a=1, b="x"), g()]`, the whole answer or between Llama 4's markers. Arguments
//! become JSON one by one.

use super::markers::{Prefix, leading_space_bytes, prefix};
use super::output::{NAME_BYTES_MAX, Output};
use super::python_literal::{PythonValue, to_json};

pub const OPEN: &str = "<|python_start|>";
pub const CLOSE: &str = "<|python_end|>";

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
                    output.arguments(&to_json(value.text()));
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
