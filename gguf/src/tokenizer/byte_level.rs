//! Byte-level BPE: `tokenizer.ggml.model` gpt2.

use serde_json::{Value, json};

use super::post_processor;
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::Vocabulary;
use crate::{Gguf, GgufError};

pub(super) fn convert(gguf: &Gguf<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value, GgufError> {
    let pre_tokenizer = PreTokenizer::read(gguf)?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": pre_tokenizer.normalizer(),
        "pre_tokenizer": pre_tokenizer.json(),
        "post_processor": post_processor(gguf, vocabulary, pre_tokenizer.adds_bos)?,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre_tokenizer.ignores_merges,
            "vocab": vocabulary.json(), "merges": merges(gguf, vocabulary)?,
        },
    }))
}

/// The merges as pairs. Errors: one is of no two tokens that make a third.
fn merges(gguf: &Gguf<'_>, vocabulary: &Vocabulary<'_>) -> Result<Vec<Value>, GgufError> {
    const KEY: &str = "tokenizer.ggml.merges";
    let lines = gguf.required(KEY, gguf.texts(KEY)?)?;
    let ids = vocabulary.ids(gguf)?;
    let pair = |line: &str| {
        // A token may begin with the space that parts them in old files.
        let first = line.chars().next().map_or(0, char::len_utf8);
        let at = first + line.get(first..)?.find(' ')?;
        let (left, right) = (&line[..at], &line[at + 1..]);
        let whole = format!("{left}{right}");
        let known = [left, right, &whole].iter().all(|token| ids.contains_key(token));
        known.then(|| json!([left, right]))
    };
    let pairs = lines.iter().map(|line| {
        pair(line).ok_or_else(|| gguf.corrupt(format!("its merge {line:?} is of unknown tokens")))
    });
    pairs.collect()
}
