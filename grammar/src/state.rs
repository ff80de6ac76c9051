//! Where an answer is in its grammar.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llguidance::Matcher;
use llguidance::api::StopReason;
use toktrie::SimpleVob;

use crate::compiler::{GrammarError, first_line};

/// What has matched so far. It is a function of the tokens alone: who accepts the same ones, in one go or
/// in many, has the same state.
pub struct GrammarState {
    matcher: Matcher,
    /// See `Grammar`.
    is_spent: Arc<AtomicBool>,
}

/// Tokens of a vocabulary.
pub struct TokenSet(SimpleVob);

impl GrammarState {
    pub(crate) fn new(matcher: Matcher, is_spent: Arc<AtomicBool>) -> Self {
        Self { matcher, is_spent }
    }

    /// Goes on by a token. Errors: the token is not allowed, or the grammar became too complex; no
    /// token is allowed then.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(());
        }
        let accepted = self.matcher.consume_token(token);
        accepted.map_err(|error| self.explain(&error.to_string()))
    }

    /// Whether `accept` would take a token. `allowed` is an upper bound: where a lexeme's length ends
    /// within a token, it has some that the parser then refuses.
    pub fn would_accept(&mut self, token: u32) -> bool {
        // What went wrong before is told by `accept`.
        self.matcher.is_stopped() || self.matcher.validate_tokens(&[token]).unwrap_or(1) == 1
    }

    /// The tokens that may come next; those that end a text, where it may end here. Never none.
    pub fn allowed(&mut self) -> Result<TokenSet, GrammarError> {
        let mask = self.matcher.compute_mask_or_eos();
        mask.map(TokenSet).map_err(|error| self.explain(&error.to_string()))
    }

    /// The tokens that must come next, as far as that is known.
    pub fn forced(&mut self) -> Vec<u32> {
        self.matcher.compute_ff_tokens()
    }

    fn explain(&self, message: &str) -> GrammarError {
        let message = first_line(message);
        match self.matcher.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                self.is_spent.store(true, Ordering::Relaxed);
                GrammarError::TooComplex(message)
            }
            _ => GrammarError::Invalid(message),
        }
    }
}

impl TokenSet {
    /// Whether it has this token.
    pub fn contains(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }

    /// Takes a token out. False: it was not there.
    pub fn remove(&mut self, token: u32) -> bool {
        let is_there = self.contains(token);
        if is_there {
            self.0.disallow_token(token);
        }
        is_there
    }

    /// Its only token, if it has one.
    pub fn only(&self) -> Option<u32> {
        let mut tokens = self.0.iter();
        tokens.next().filter(|_| tokens.next().is_none())
    }

    /// Its tokens, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }

    /// Makes all other tokens impossible: `logits` is `[vocabulary_size]`.
    pub fn forbid_others(&self, logits: &mut [f32]) {
        self.0.iter_unset_entries(|token| logits[token] = f32::NEG_INFINITY);
    }
}
