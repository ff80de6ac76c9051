//! Prompts: words drawn by seed, in conversations that share a prefix and grow by the server's
//! answers.

use std::collections::VecDeque;
use std::fmt::Write;

use parking_lot::Mutex;
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

use crate::random::{Purpose, random};
use crate::request::message;
use crate::words::WORDS;

/// How many words each part of a prompt has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptWords {
    /// The system message that all conversations share; none if 0.
    pub prefix: u32,
    /// Each of the user's messages, at least 1.
    pub question: u32,
}

/// The history of one user, whose next question has been asked or is about to be.
pub struct Conversation {
    random: ChaCha8Rng,
    question_words: u32,
    /// As JSON, with commas between them.
    messages: String,
    turns_left: u32,
}

impl Conversation {
    /// The messages of the next request. Only a conversation with turns left is asked.
    pub fn ask(&mut self) -> &str {
        self.turns_left -= 1;
        let question = words(&mut self.random, self.question_words);
        self.push("user", &question);
        &self.messages
    }

    /// Adds the server's answer.
    pub fn answered(&mut self, text: &str) {
        self.push("assistant", text);
    }

    /// Whether another question will follow.
    pub fn goes_on(&self) -> bool {
        self.turns_left > 0
    }

    fn push(&mut self, role: &str, content: &str) {
        let comma = if self.messages.is_empty() { "" } else { "," };
        let _infallible = write!(self.messages, "{comma}{}", message(role, content));
    }
}

/// All conversations of a run.
pub struct Conversations {
    seed: u64,
    turns: u32,
    words: PromptWords,
    prefix: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    begun: u64,
    /// Those that wait for their next turn, the one that has waited longest in front. There are
    /// at most as many as there were ever requests under way at once.
    idle: VecDeque<Conversation>,
}

impl Conversations {
    /// None has begun yet.
    pub fn new(seed: u64, turns: u32, words: PromptWords) -> Self {
        let prefix = if words.prefix == 0 { String::new() } else { prefix(seed, words.prefix) };
        Self { seed, turns, words, prefix, state: Mutex::default() }
    }

    /// A new conversation.
    pub fn begin(&self) -> Conversation {
        let number = {
            let mut state = self.state.lock();
            state.begun += 1;
            state.begun - 1
        };
        Conversation {
            random: random(self.seed, Purpose::Conversation(number)),
            question_words: self.words.question,
            messages: self.prefix.clone(),
            turns_left: self.turns,
        }
    }

    /// The one that has waited longest for its next turn, else a new one.
    pub fn next(&self) -> Conversation {
        let idle = self.state.lock().idle.pop_front();
        idle.unwrap_or_else(|| self.begin())
    }

    /// Lets a conversation wait for its next turn, if it has one.
    pub fn give_back(&self, conversation: Conversation) {
        if conversation.goes_on() {
            self.state.lock().idle.push_back(conversation);
        }
    }
}

fn prefix(seed: u64, count: u32) -> String {
    message("system", &words(&mut random(seed, Purpose::Prefix), count))
}

fn words(random: &mut ChaCha8Rng, count: u32) -> String {
    let mut text = String::with_capacity(count as usize * 6);
    for index in 0..count {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[random.next_u32() as usize % WORDS.len()]);
    }
    text
}
