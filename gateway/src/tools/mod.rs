//! Tool calls and reasoning: how a model writes them ([`Dialect`]), and how its text becomes the parts
//! of an answer while it comes ([`AnswerParser`]). Nothing here performs I/O.
//!
//! The crates `tool-parser` and `reasoning-parser` were tried first. They parse all of a call anew for
//! each piece of text, so that a long call costs quadratic time; what they emit depends on where the
//! text was cut; and they bring a Python parser with LGPL arithmetic and another API's types. Hence our
//! own: each character is looked at a bounded number of times, and however the text is cut, the
//! concatenated deltas are the same.
//!
//! What merely looks like a call is not lost. Behind a marker of the dialect's own, any plausible name
//! is a call, since the model meant one and only the client can tell it that there is no such tool;
//! where calls have no marker, only the names of the request's tools are. Anything else is content, its
//! marker included. Once a call was announced its arguments are passed on as the model wrote them,
//! broken or not.

mod answer;
mod dialect;

mod grammar;
mod lark;
mod schema;

mod thinking;

mod deepseek;
mod harmony;
mod json_calls;
mod pythonic;

mod call_object;
mod json_scanner;
mod markers;
mod output;
mod python_literal;

#[cfg(test)]
mod grammar_tests;
#[cfg(test)]
mod tests;

pub use answer::AnswerParser;
pub use dialect::{Dialect, Thinking};
pub use grammar::{grammar_of, text_grammar};
pub use output::Delta;
