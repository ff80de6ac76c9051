//! Reads GGUF files (versions 2 and 3, little endian) straight from a map of the file: metadata, where
//! tensors lie, and the tokenizer as the text of a Hugging Face `tokenizer.json`.
//!
//! Files come from anywhere, so every count, length and offset in one is checked against the file's
//! size before it is used, and nothing is allocated by what a file merely claims. Readers in other
//! crates copy tensors and arrays out of the file and allocate what it asks for; this one borrows.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod error;
mod file;
mod metadata;
mod parse;
mod tensor;

mod cursor;

pub mod tokenizer;

#[cfg(feature = "test-support")]
pub mod test_support;

pub use error::GgufError;
pub use file::map;
pub use metadata::{Array, Kind, Metadata, Value};
pub use parse::Gguf;
pub use tensor::{TensorInfo, TensorType};
