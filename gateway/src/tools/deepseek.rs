//! Calls between DeepSeek's markers: V3 and R1 put the arguments into a fenced block, V3.1 does not.

use super::json_scanner::{JsonScanner, Scan};
use super::markers::{Prefix, Search, leading_space_bytes, prefix, search};
use super::output::{NAME_BYTES_MAX, Output};

pub const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub const CALL_END: &str = "<｜tool▁call▁end｜>";
pub const SEPARATOR: &str = "<｜tool▁sep｜>";

const FENCE: &str = "```";
/// What stands before the separator in V3.
pub const KIND: &str = "function";

/// Parses calls.
#[derive(Debug, Default)]
pub struct DeepSeekCalls {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    BetweenCalls,
    /// The name, or the kind of tool.
    Head(String),
    AfterSeparator(String),
    Name(String),
    Fence(String),
    Arguments(JsonScanner),
    AfterArguments,
}

impl DeepSeekCalls {
    /// The bytes taken of a text, `None` if more must come first.
    pub fn step(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        match &mut self.state {
            State::Text => self.text(text, is_end, output),
            State::BetweenCalls => self.between_calls(text, is_end, output),
            State::Head(_) => self.head(text, is_end, output),
            State::AfterSeparator(_) => self.after_separator(text, output),
            State::Name(_) => self.name(text, output),
            State::Fence(_) => self.fence(text, is_end, output),
            State::Arguments(scanner) => {
                let (bytes, scan) = scanner.feed(text);
                output.arguments(&text[..bytes]);
                if scan != Scan::More {
                    self.state = State::AfterArguments;
                }
                Some(bytes)
            }
            State::AfterArguments => self.after_arguments(text, is_end, output),
        }
    }

    fn fail(&mut self, output: &mut Output) {
        output.release();
        self.state = State::Text;
    }

    fn text(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        match search(text, &[CALLS_BEGIN, CALL_BEGIN], is_end) {
            Search::Found(before, index) => {
                output.content(&text[..before]);
                let (marker, state) = match index {
                    0 => (CALLS_BEGIN, State::BetweenCalls),
                    _ => (CALL_BEGIN, State::Head(String::new())),
                };
                output.hold(marker);
                self.state = state;
                Some(before + marker.len())
            }
            Search::NoneBefore(bytes) => {
                output.content(&text[..bytes]);
                (bytes > 0).then_some(bytes)
            }
        }
    }

    fn between_calls(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let space = leading_space_bytes(text);
        output.hold(&text[..space]);
        let rest = &text[space..];
        if rest.is_empty() {
            return Some(space);
        }
        match (prefix(rest, CALL_BEGIN, is_end), prefix(rest, CALLS_END, is_end)) {
            (Prefix::Whole, _) => {
                output.hold(CALL_BEGIN);
                self.state = State::Head(String::new());
                Some(space + CALL_BEGIN.len())
            }
            (_, Prefix::Whole) => {
                output.forget();
                output.after_markup();
                self.state = State::Text;
                Some(space + CALLS_END.len())
            }
            (Prefix::Partial, _) | (_, Prefix::Partial) => (space > 0).then_some(space),
            _ => {
                self.fail(output);
                Some(space)
            }
        }
    }

    fn head(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let State::Head(head) = &mut self.state else { return None };
        let bytes = head_bytes(text);
        head.push_str(&text[..bytes]);
        output.hold(&text[..bytes]);
        let rest = &text[bytes..];
        match prefix(rest, SEPARATOR, is_end) {
            _ if head.len() > NAME_BYTES_MAX => self.fail(output),
            Prefix::Whole => {
                output.hold(SEPARATOR);
                self.state = State::AfterSeparator(head.trim().to_owned());
                return Some(bytes + SEPARATOR.len());
            }
            Prefix::Partial => return (bytes > 0).then_some(bytes),
            Prefix::No => self.fail(output),
        }
        Some(bytes)
    }

    fn after_separator(&mut self, text: &str, output: &mut Output) -> Option<usize> {
        let State::AfterSeparator(head) = &self.state else { return None };
        let space = leading_space_bytes(text);
        output.hold(&text[..space]);
        match text[space..].chars().next() {
            None => {}
            Some('{') => self.state = State::Fence(head.clone()),
            Some(_) if head == KIND => self.state = State::Name(String::new()),
            Some(_) => self.fail(output),
        }
        Some(space)
    }

    fn name(&mut self, text: &str, output: &mut Output) -> Option<usize> {
        let State::Name(name) = &mut self.state else { return None };
        let bytes = head_bytes(text);
        name.push_str(&text[..bytes]);
        output.hold(&text[..bytes]);
        match text[bytes..].chars().next() {
            _ if name.len() > NAME_BYTES_MAX => self.fail(output),
            None => {}
            Some('\n') => self.state = State::Fence(name.trim().to_owned()),
            Some(_) => self.fail(output),
        }
        Some(bytes)
    }

    fn fence(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let State::Fence(name) = &self.state else { return None };
        let space = leading_space_bytes(text);
        let rest = &text[space..];
        let taken = match rest.chars().next() {
            None => space,
            Some('{') if output.accepts(name, false) => {
                output.call(name);
                self.state = State::Arguments(JsonScanner::default());
                return Some(space);
            }
            Some('`') => {
                let whole = [FENCE, "json"].concat();
                match prefix(rest, &whole, is_end) {
                    Prefix::Whole => space + whole.len(),
                    Prefix::Partial => return None,
                    Prefix::No if rest.starts_with(FENCE) => space + FENCE.len(),
                    Prefix::No => {
                        self.fail(output);
                        return Some(0);
                    }
                }
            }
            Some(_) => {
                self.fail(output);
                return Some(0);
            }
        };
        output.hold(&text[..taken]);
        Some(taken)
    }

    fn after_arguments(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let space = leading_space_bytes(text);
        let rest = &text[space..];
        if rest.is_empty() {
            return Some(space);
        }
        let markers = [FENCE, CALL_END, CALLS_END];
        let found = markers.map(|marker| prefix(rest, marker, is_end));
        if let Some(index) = found.iter().position(|found| *found == Prefix::Whole) {
            match index {
                0 => {}
                1 => self.state = State::BetweenCalls,
                _ => self.state = State::Text,
            }
            return Some(space + markers[index].len());
        }
        if found.contains(&Prefix::Partial) {
            return (space > 0).then_some(space);
        }
        output.after_markup();
        self.state = State::Text;
        Some(space)
    }
}

/// Bytes of what may be a name and space around it. No marker begins within.
fn head_bytes(text: &str) -> usize {
    let is_of_head =
        |next: char| next.is_ascii_alphanumeric() || matches!(next, '_' | '-' | '.' | ' ' | '\r');
    text.find(|next| !is_of_head(next)).unwrap_or(text.len())
}
