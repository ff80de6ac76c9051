//! Makes a GGUF file of a model directory in Hugging Face layout, for tests and measurements:
//!
//!     cargo run --package engine --example make_gguf -- models/demo demo.gguf BF16 stator-demo
//!
//! The last two arguments are how matrices are stored, and the name of the pre-tokenizer.

use std::path::Path;
use std::process::ExitCode;

use gguf::TensorType;
use gguf::test_support::{Conversion, convert};

const TYPES: [TensorType; 8] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q5_0,
    TensorType::Q4_K,
    TensorType::Q6_K,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, target, kind, pre] = &arguments[..] else {
        eprintln!("usage: make_gguf DIRECTORY FILE TYPE PRE_TOKENIZER");
        return ExitCode::from(64);
    };
    let Some(kind) = TYPES.into_iter().find(|known| known.to_string() == *kind) else {
        eprintln!("make_gguf: TYPE is one of {TYPES:?}");
        return ExitCode::from(64);
    };
    let conversion = Conversion { matrices: &|_| kind, pre, dequantized: false };
    let file = convert(Path::new(directory), &conversion).finish();
    if let Err(error) = std::fs::write(target, file) {
        eprintln!("make_gguf: cannot write {target}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
