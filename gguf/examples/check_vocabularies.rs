//! Compares tokenizers of GGUF files with the ids that their own tokenizers gave. llama.cpp's sources
//! have such files in `models/`: `*.gguf` of vocabularies, with texts (`.inp`) and ids (`.out`).
//!
//!     cargo run --package gguf --example check_vocabularies -- path/to/llama.cpp/models

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::tokenizer::Tokenizer;
use gguf::{Gguf, tokenizer};

fn main() -> ExitCode {
    let Some(directory) = std::env::args().nth(1) else {
        eprintln!("usage: check_vocabularies DIRECTORY");
        return ExitCode::from(64);
    };
    let files = std::fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    paths.sort();
    let mut all_equal = !paths.is_empty();
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match check(path) {
            Ok((texts, 0)) => println!("{name}: all {texts} texts have their ids"),
            Ok((texts, wrong)) => {
                println!("{name}: {wrong} of {texts} texts have other ids");
                all_equal = false;
            }
            Err(error) => println!("{name}: not compared: {error}"),
        }
    }
    if all_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many texts there are, and how many have other ids.
fn check(path: &Path) -> Result<(usize, usize), Box<dyn std::error::Error>> {
    let file = gguf::map(path)?;
    let gguf = Gguf::parse(&file, path)?;
    let ours = tokenizer::tokenizer_json(&gguf)?;
    let ours = Tokenizer::from_bytes(ours.as_bytes(), usize::MAX)?;
    let beside = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display()));
    let (texts, ids) = (beside(".inp")?, beside(".out")?);
    let (mut count, mut wrong) = (0, 0);
    for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
        let expected = ids.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        count += 1;
        wrong += usize::from(ours.encode(text, false)? != expected);
    }
    Ok((count, wrong))
}
