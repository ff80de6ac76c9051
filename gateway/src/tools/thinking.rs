//! Reasoning before the answer: `<think>…</think>`, where the prompt may have opened it already.

use super::markers::{Prefix, Search, leading_space_bytes, prefix, search};
use super::output::Output;

/// Where a text is in its reasoning.
#[derive(Debug)]
pub struct ThinkingParser {
    open: &'static str,
    close: &'static str,
    state: State,
    /// Held until it is clear that reasoning goes on, or that there is none.
    space: String,
}

#[derive(Debug)]
enum State {
    MayBegin,
    /// The prompt opened it; some models do it again.
    Opened,
    Begun,
    Inside,
}

impl ThinkingParser {
    /// `is_open`: the prompt ended with the opening marker.
    pub fn new(open: &'static str, close: &'static str, is_open: bool) -> Self {
        let state = if is_open { State::Opened } else { State::MayBegin };
        Self { open, close, state, space: String::new() }
    }

    /// The bytes taken, and whether all that follows is the answer.
    pub fn feed(&mut self, text: &str, is_end: bool, output: &mut Output) -> (usize, bool) {
        let mut at = 0;
        loop {
            let rest = &text[at..];
            match self.state {
                State::MayBegin | State::Opened | State::Begun => {
                    let space = leading_space_bytes(rest);
                    self.space.push_str(&rest[..space]);
                    at += space;
                    if at == text.len() || !self.begin(&rest[space..], is_end, &mut at) {
                        return (at, false);
                    }
                    if matches!(self.state, State::MayBegin) {
                        output.content(&std::mem::take(&mut self.space));
                        return (at, true);
                    }
                    self.space.clear();
                }
                State::Inside => return self.inside(text, at, is_end, output),
            }
        }
    }

    /// After space. `false`: more must come first. Still [`State::MayBegin`]: there is no reasoning.
    fn begin(&mut self, text: &str, is_end: bool, at: &mut usize) -> bool {
        let found = match self.state {
            State::Begun => Prefix::No,
            _ => prefix(text, self.open, is_end),
        };
        match found {
            Prefix::Partial => return false,
            Prefix::Whole => {
                *at += self.open.len();
                self.state = State::Begun;
            }
            Prefix::No if !matches!(self.state, State::MayBegin) => self.state = State::Inside,
            Prefix::No => {}
        }
        true
    }

    fn inside(
        &mut self,
        text: &str,
        at: usize,
        is_end: bool,
        output: &mut Output,
    ) -> (usize, bool) {
        match search(&text[at..], &[self.close], is_end) {
            Search::Found(before, _) => {
                self.reasoning(&text[at..at + before], output);
                output.after_markup();
                (at + before + self.close.len(), true)
            }
            Search::NoneBefore(bytes) => {
                self.reasoning(&text[at..at + bytes], output);
                (at + bytes, false)
            }
        }
    }

    fn reasoning(&mut self, text: &str, output: &mut Output) {
        let shown = text.trim_end();
        if !shown.is_empty() {
            output.reasoning(&std::mem::take(&mut self.space));
            output.reasoning(shown);
        }
        self.space.push_str(&text[shown.len()..]);
    }

    /// No text comes any more.
    pub fn finish(&mut self, output: &mut Output) {
        let space = std::mem::take(&mut self.space);
        match self.state {
            State::MayBegin => output.content(&space),
            State::Opened | State::Begun | State::Inside => output.reasoning(&space),
        }
    }
}
