//! Grammars that an answer must match, token by token: compiled by llguidance from its variant of Lark,
//! within limits, so that a hostile grammar costs little time and memory.
//!
//! The gateway compiles a request's grammar to refuse what cannot be followed; workers compile it to
//! choose tokens by.

mod cache;
mod compiler;
mod state;
mod token_environment;

pub use compiler::{Compiler, Grammar, GrammarError};
pub use state::{GrammarState, TokenSet};
