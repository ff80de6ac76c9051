//! The OpenAI dialect: JSON in, requests out; tokens in, JSON out. Nothing here performs I/O or
//! reads a clock.

mod constraint;
mod fields;
mod parameters;
mod template_variables;
mod tools;
mod unsupported;

mod chat;
mod completion;
mod tokenize;

mod chat_response;
mod completion_response;
mod logprobs;
mod models;
mod response;

mod error;

pub use chat::ChatRequest;
pub use chat_response::{ChatChoice, ChatStream, chat_completion};
pub use completion::{CompletionRequest, Prompt, PromptContent};
pub use completion_response::{CompletionChoice, CompletionStream, text_completion};
pub use constraint::{Constraint, Pattern};
pub use error::ApiError;
pub use logprobs::TokenText;
pub use models::{ModelCard, model_list, model_object};
pub use parameters::{Parameters, StreamOptions};
pub use response::{Head, Usage};
pub use tokenize::{DetokenizeRequest, Text, TokenizeRequest, detokenized, tokenized};
pub use tools::{Function, ToolChoice, Tools};
