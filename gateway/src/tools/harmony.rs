//! gpt-oss' harmony: an answer is several messages, each with a channel and perhaps a recipient.
//!
//! ```text
//! <|channel|>analysis<|message|>…<|end|>
//! <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>
//! <|start|>assistant<|channel|>final<|message|>…<|return|>
//! ```

use super::json_scanner::{JsonScanner, Scan};
use super::markers::{Search, leading_space_bytes, search};
use super::output::Output;

pub const START: &str = "<|start|>";
pub const CHANNEL: &str = "<|channel|>";
pub const MESSAGE: &str = "<|message|>";
pub const CONSTRAIN: &str = "<|constrain|>";
pub const END: &str = "<|end|>";
pub const CALL: &str = "<|call|>";
pub const RETURN: &str = "<|return|>";

/// Before a function's name.
pub const NAMESPACE: &str = "functions.";

const AROUND_BODIES: [&str; 5] = [START, CHANNEL, END, CALL, RETURN];
/// How many of those begin a header.
const BEGIN_HEADERS: usize = 2;
/// Longer headers are none.
const HEADER_BYTES_MAX: usize = 512;

/// Parses messages.
#[derive(Debug)]
pub struct HarmonyMessages {
    with_tools: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Body(Body),
    Header(String),
    CallBegins,
    Call(JsonScanner),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Body {
    Content,
    Reasoning,
    /// Arguments that are no object.
    Arguments,
    /// What follows arguments.
    Nothing,
}

impl HarmonyMessages {
    pub fn new(with_tools: bool) -> Self {
        Self { with_tools, state: State::Body(Body::Content) }
    }

    /// The bytes taken of a text, `None` if more must come first.
    pub fn step(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        match &mut self.state {
            State::Body(body) => {
                let body = *body;
                self.body(body, text, is_end, output)
            }
            State::Header(_) => self.header(text, is_end, output),
            State::CallBegins => {
                let space = leading_space_bytes(text);
                match text[space..].chars().next() {
                    None => {}
                    Some('{') => self.state = State::Call(JsonScanner::default()),
                    Some(_) => self.state = State::Body(Body::Arguments),
                }
                Some(space)
            }
            State::Call(scanner) => {
                let (bytes, scan) = scanner.feed(text);
                output.arguments(&text[..bytes]);
                if scan != Scan::More {
                    self.state = State::Body(Body::Nothing);
                }
                Some(bytes)
            }
        }
    }

    fn body(&mut self, body: Body, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let (bytes, found) = match search(text, &AROUND_BODIES, is_end) {
            Search::Found(before, index) => (before, Some(index)),
            Search::NoneBefore(bytes) => (bytes, None),
        };
        match body {
            Body::Content => output.content(&text[..bytes]),
            Body::Reasoning => output.reasoning(&text[..bytes]),
            Body::Arguments => output.arguments(&text[..bytes]),
            Body::Nothing => {}
        }
        let Some(index) = found else { return (bytes > 0).then_some(bytes) };
        let marker = AROUND_BODIES[index];
        output.after_markup();
        self.state = if index < BEGIN_HEADERS {
            output.hold(marker);
            State::Header(marker.to_owned())
        } else {
            State::Body(Body::Content)
        };
        Some(bytes + marker.len())
    }

    fn header(&mut self, text: &str, is_end: bool, output: &mut Output) -> Option<usize> {
        let State::Header(header) = &mut self.state else { return None };
        let (bytes, marker) = match search(text, &[MESSAGE], is_end) {
            Search::Found(before, _) => (before, MESSAGE),
            Search::NoneBefore(bytes) => (bytes, ""),
        };
        let room = HEADER_BYTES_MAX - header.len();
        if bytes > room {
            let bytes = text.floor_char_boundary(room);
            output.hold(&text[..bytes]);
            output.release();
            self.state = State::Body(Body::Content);
            return Some(bytes);
        }
        header.push_str(&text[..bytes]);
        output.hold(&text[..bytes + marker.len()]);
        if !marker.is_empty() {
            let header = std::mem::take(header);
            self.message(&header, output);
        } else if bytes == 0 {
            return None;
        }
        Some(bytes + marker.len())
    }

    fn message(&mut self, header: &str, output: &mut Output) {
        output.forget();
        let recipient = recipient(header).filter(|name| output.accepts(name, false));
        self.state = match (recipient, channel(header)) {
            (Some(name), _) if self.with_tools => {
                output.call(name);
                State::CallBegins
            }
            (_, "analysis") => State::Body(Body::Reasoning),
            _ => State::Body(Body::Content),
        };
    }
}

/// Empty if there is none.
fn channel(header: &str) -> &str {
    let (_, after) = header.rsplit_once(CHANNEL).unwrap_or_default();
    after.split(|next: char| next.is_whitespace() || next == '<').next().unwrap_or_default()
}

/// A function's name, or another recipient whole.
fn recipient(header: &str) -> Option<&str> {
    let (_, after) = header.split_once(" to=")?;
    let name = after.split(|next: char| next.is_whitespace() || next == '<').next()?;
    Some(name.strip_prefix(NAMESPACE).unwrap_or(name))
}
