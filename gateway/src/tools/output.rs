//! What parsers have to say, and what they keep to themselves until it is clear.

use rand::Rng;
use rand::distr::Alphanumeric;

/// Calls of one answer; further ones are left out.
const CALLS_MAX: u32 = 128;
/// Longer names are no names.
pub const NAME_BYTES_MAX: usize = 128;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Text for the user.
    Content(String),
    /// What the model thought before.
    Reasoning(String),
    /// A call begins.
    ToolCall { index: u32, id: String, name: String },
    /// JSON; whole once the call's deltas are put together, if the answer was not cut off.
    Arguments { index: u32, text: String },
}

/// Collects deltas. Text that may still turn out to be markup is held, and so is the space after
/// content, which belongs to the markup if a call follows.
#[derive(Debug, Default)]
pub struct Output {
    deltas: Vec<Delta>,
    held: String,
    space: String,
    /// Calls may come, hence space is held.
    holds_space: bool,
    /// Space that comes next stands beside markup.
    is_after_markup: bool,
    calls: u32,
    one_call: bool,
    /// The present call is one too many.
    is_left_out: bool,
    names: Option<Vec<String>>,
}

impl Output {
    pub fn new(with_tools: bool) -> Self {
        Self { holds_space: with_tools, ..Self::default() }
    }

    /// Only these names are calls where nothing else tells.
    pub fn know(&mut self, names: Vec<String>) {
        self.names = Some(names);
    }

    /// Calls after the first are left out.
    pub fn keep_one_call(&mut self) {
        self.one_call = true;
    }

    /// Calls so far, without those left out.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether a call may have this name. `must_be_known`: nothing else says that it is a call.
    pub fn accepts(&self, name: &str, must_be_known: bool) -> bool {
        let is_plausible = !name.is_empty() && name.len() <= NAME_BYTES_MAX && is_plain(name);
        match &self.names {
            Some(names) if must_be_known => names.iter().any(|known| known == name),
            _ => is_plausible,
        }
    }

    pub fn content(&mut self, text: &str) {
        let text = if self.is_after_markup { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.is_after_markup = false;
        let shown = if self.holds_space { text.trim_end() } else { text };
        if shown.is_empty() {
            self.space.push_str(text);
            return;
        }
        let space = std::mem::take(&mut self.space);
        self.append_content(&space);
        self.append_content(shown);
        self.space.push_str(&text[shown.len()..]);
    }

    fn append_content(&mut self, text: &str) {
        match self.deltas.last_mut() {
            _ if text.is_empty() => {}
            Some(Delta::Content(last)) => last.push_str(text),
            _ => self.deltas.push(Delta::Content(text.to_owned())),
        }
    }

    pub fn reasoning(&mut self, text: &str) {
        match self.deltas.last_mut() {
            _ if text.is_empty() => {}
            Some(Delta::Reasoning(last)) => last.push_str(text),
            _ => self.deltas.push(Delta::Reasoning(text.to_owned())),
        }
    }

    /// Space that comes now stands between markup and content.
    pub fn after_markup(&mut self) {
        self.is_after_markup = true;
    }

    /// Keeps what is content unless a call follows.
    pub fn hold(&mut self, text: &str) {
        self.held.push_str(text);
    }

    /// What is held was content.
    pub fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.content(&held);
    }

    /// What is held was markup.
    pub fn forget(&mut self) {
        self.held.clear();
    }

    /// A call begins; what is held belongs to it.
    pub fn call(&mut self, name: &str) {
        self.held.clear();
        self.space.clear();
        self.is_after_markup = true;
        self.is_left_out = self.calls >= if self.one_call { 1 } else { CALLS_MAX };
        if !self.is_left_out {
            let (index, name) = (self.calls, name.to_owned());
            self.calls += 1;
            self.deltas.push(Delta::ToolCall { index, id: call_id(), name });
        }
    }

    /// More arguments of the latest call.
    pub fn arguments(&mut self, text: &str) {
        if self.is_left_out || text.is_empty() {
            return;
        }
        match self.deltas.last_mut() {
            Some(Delta::Arguments { text: last, .. }) => last.push_str(text),
            _ => {
                let index = self.calls.saturating_sub(1);
                self.deltas.push(Delta::Arguments { index, text: text.to_owned() });
            }
        }
    }

    /// No text comes any more.
    pub fn finish(&mut self) {
        self.release();
        let space = std::mem::take(&mut self.space);
        self.append_content(&space);
    }

    pub fn take(&mut self) -> Vec<Delta> {
        std::mem::take(&mut self.deltas)
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// `call_` and 24 letters and digits.
fn call_id() -> String {
    let random = rand::rng().sample_iter(Alphanumeric).take(24).map(char::from);
    "call_".chars().chain(random).collect()
}
