//! Makes GGUF files for tests: of anything, and of model directories in Hugging Face layout.

mod convert;
mod quantize;
mod tokenizer;
mod writer;

pub use convert::{Conversion, convert};
pub use quantize::quantize;
pub use tokenizer::{sentencepiece_metadata, tokenizer_metadata};
pub use writer::{Writable, Writer};
