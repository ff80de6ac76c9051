//! Calls as JSON: behind a marker (Hermes, Qwen, Mistral), or the whole answer (Llama 3).

use super::call_object::{CallObject, Progress};
use super::json_scanner::{JsonScanner, Scan};
use super::markers::{Prefix, Search, leading_space_bytes, prefix, search};
use super::output::{NAME_BYTES_MAX, Output};

const NAMED_ARGUMENTS: &str = "[ARGS]";
const NAMED_ID: &str = "[CALL_ID]";

/// What is around calls.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub opener: Option<&'static str>,
    pub closer: Option<&'static str>,
    /// An answer that begins with a call needs no opener.
    pub is_bare: bool,
    /// The name may stand before the arguments: `f{…}` or `f[ARGS]{…}`.
    pub is_named: bool,
}

/// Parses calls of one style.
#[derive(Debug)]
pub struct JsonCalls {
    style: Style,
    state: State,
    in_list: bool,
    /// No marker says that a call comes.
    must_be_known: bool,
}

#[derive(Debug)]
enum State {
    Start,
    Text,
    /// A call or a list of them must follow.
    Opened,
    Object(CallObject),
    /// A name, or an id, that ends with a mark.
    Name(String),
    Mark(String),
    Id(String),
    NamedArguments(String),
    Arguments(JsonScanner),
    AfterCall,
}

impl JsonCalls {
    pub fn new(style: Style) -> Self {
        let state = if style.is_bare { State::Start } else { State::Text };
        Self { style, state, in_list: false, must_be_known: true }
    }

    /// The bytes taken of a text, `None` if more must come first.
    pub fn step(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        match &mut self.state {
            State::Start => self.start(text, output),
            State::Text => self.text(text, is_end, output),
            State::Opened => self.opened(text, output),
            State::Object(object) => {
                let (bytes, progress) = object.feed(text, output);
                match progress {
                    Progress::More => {}
                    Progress::Done => self.state = State::AfterCall,
                    Progress::Failed => self.fail(output),
                }
                Some(bytes)
            }
            State::Name(_) => self.name(text, output),
            State::Mark(_) => self.mark(text, is_end, output),
            State::Id(_) => self.id(text, is_end, output),
            State::NamedArguments(_) => self.named_arguments(text, output),
            State::Arguments(scanner) => {
                let (bytes, scan) = scanner.feed(text);
                output.arguments(&text[..bytes]);
                if scan != Scan::More {
                    self.state = State::AfterCall;
                }
                Some(bytes)
            }
            State::AfterCall => self.after_call(text, is_end, output),
        }
    }

    /// No text comes any more.
    pub fn finish(&mut self, output: &mut Output) {
        if let State::Object(object) = &mut self.state {
            object.finish(output);
        }
    }

    fn fail(&mut self, output: &mut Output) {
        output.release();
        self.in_list = false;
        self.state = State::Text;
    }

    fn start(&mut self, text: &str, output: &mut Output) -> Option<usize> {
        let space = leading_space_bytes(text);
        output.hold(&text[..space]);
        match text[space..].chars().next() {
            None => {}
            Some('{') => self.state = State::Object(CallObject::new(true)),
            Some(_) => self.fail(output),
        }
        Some(space)
    }

    fn text(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let Some(opener) = self.style.opener else {
            output.content(text);
            return Some(text.len());
        };
        match search(text, &[opener], is_end) {
            Search::Found(before, _) => {
                output.content(&text[..before]);
                output.hold(opener);
                (self.state, self.must_be_known) = (State::Opened, false);
                Some(before + opener.len())
            }
            Search::NoneBefore(bytes) => {
                output.content(&text[..bytes]);
                (bytes > 0).then_some(bytes)
            }
        }
    }

    fn opened(&mut self, text: &str, output: &mut Output) -> Option<usize> {
        let space = leading_space_bytes(text);
        output.hold(&text[..space]);
        match text[space..].chars().next() {
            None => {}
            Some('{') => {
                self.state = State::Object(CallObject::new(self.must_be_known));
            }
            Some('[') if !self.in_list => {
                output.hold("[");
                self.in_list = true;
                return Some(space + 1);
            }
            Some(next) if self.style.is_named && !self.in_list && is_of_name(next) => {
                self.state = State::Name(String::new());
            }
            Some(_) => self.fail(output),
        }
        Some(space)
    }

    fn name(&mut self, text: &str, output: &mut Output) -> Option<usize> {
        let State::Name(name) = &mut self.state else { return None };
        let bytes = text.find(|next| !is_of_name(next)).unwrap_or(text.len());
        name.push_str(&text[..bytes]);
        output.hold(&text[..bytes]);
        let name = name.clone();
        match text[bytes..].chars().next() {
            _ if name.len() > NAME_BYTES_MAX => self.fail(output),
            None => {}
            Some('[') => self.state = State::Mark(name),
            Some('{') => self.state = State::NamedArguments(name),
            Some(_) => self.fail(output),
        }
        Some(bytes)
    }

    /// `[ARGS]` or `[CALL_ID]`.
    fn mark(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let State::Mark(name) = &self.state else { return None };
        let arguments = prefix(text, NAMED_ARGUMENTS, is_end);
        let id = prefix(text, NAMED_ID, is_end);
        let (state, marker) = match (arguments, id) {
            (Prefix::Whole, _) => (State::NamedArguments(name.clone()), NAMED_ARGUMENTS),
            (_, Prefix::Whole) => (State::Id(name.clone()), NAMED_ID),
            (Prefix::Partial, _) | (_, Prefix::Partial) => return None,
            _ => {
                self.fail(output);
                return Some(0);
            }
        };
        output.hold(marker);
        self.state = state;
        Some(marker.len())
    }

    /// The model's own id for a call; the client gets another one.
    fn id(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let State::Id(name) = &self.state else { return None };
        let bytes = text.find(|next| !is_of_name(next)).unwrap_or(text.len());
        match prefix(&text[bytes..], NAMED_ARGUMENTS, is_end) {
            Prefix::Whole => {
                let bytes = bytes + NAMED_ARGUMENTS.len();
                output.hold(&text[..bytes]);
                self.state = State::NamedArguments(name.clone());
                Some(bytes)
            }
            Prefix::Partial => {
                output.hold(&text[..bytes]);
                (bytes > 0).then_some(bytes)
            }
            Prefix::No => {
                output.hold(&text[..bytes]);
                self.fail(output);
                Some(bytes)
            }
        }
    }

    fn named_arguments(&mut self, text: &str, output: &mut Output) -> Option<usize> {
        let State::NamedArguments(name) = &self.state else { return None };
        let space = leading_space_bytes(text);
        output.hold(&text[..space]);
        match text[space..].chars().next() {
            None => {}
            Some('{') if output.accepts(name, false) => {
                output.call(name);
                self.state = State::Arguments(JsonScanner::default());
            }
            Some(_) => self.fail(output),
        }
        Some(space)
    }

    fn after_call(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let space = leading_space_bytes(text);
        let rest = &text[space..];
        let Some(next) = rest.chars().next() else { return Some(space) };
        let bytes = match (next, self.style.closer) {
            (',', _) if self.in_list => {
                output.hold(",");
                self.state = State::Opened;
                1
            }
            (']', _) if self.in_list => {
                self.in_list = false;
                1
            }
            (';' | ',', _) if self.style.is_bare => {
                output.hold(&rest[..1]);
                self.state = State::Opened;
                1
            }
            ('{', _) if self.style.is_bare => {
                self.state = State::Opened;
                0
            }
            (_, Some(closer)) => match prefix(rest, closer, is_end) {
                Prefix::Partial => return (space > 0).then_some(space),
                Prefix::Whole => {
                    self.leave(output);
                    closer.len()
                }
                Prefix::No => self.leave(output),
            },
            (_, None) => self.leave(output),
        };
        Some(space + bytes)
    }

    fn leave(&mut self, output: &mut Output) -> usize {
        self.in_list = false;
        self.state = State::Text;
        output.after_markup();
        0
    }
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.')
}
