//! Between text and tokens: the chat template on the way in, detokenizer and stop strings on the way
//! out. Nothing here performs I/O.

mod chat_template;
mod conversation;
mod python_json;
mod strftime;

mod detokenizer;
mod stop;

pub use chat_template::{ChatTemplate, TemplateError, TemplateVariables};
pub use detokenizer::Detokenizer;
pub use stop::StopMatcher;

#[cfg(any(test, feature = "fuzzing"))]
pub mod family_templates;
#[cfg(test)]
mod family_tests;
