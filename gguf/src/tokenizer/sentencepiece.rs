//! SentencePiece with byte fallback: `tokenizer.ggml.model` llama. Such files have scores instead of
//! merges; merges are rebuilt from them as Hugging Face transformers does when it converts one.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::post_processor;
use super::vocabulary::{Kind, Vocabulary};
use crate::{Gguf, GgufError};

/// Bytes of a token at most: work grows with the square of it. Real ones have some dozens.
const TOKEN_BYTES_MAX: usize = 512;

const SPACE: &str = "\u{2581}";

pub(super) fn convert(gguf: &Gguf<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value, GgufError> {
    let unknown = vocabulary.tokens().find(|(_, _, kind)| *kind == Kind::Unknown);
    let with_prefix = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": normalizer(with_prefix),
        "pre_tokenizer": null,
        "post_processor": post_processor(gguf, vocabulary, true)?,
        "decoder": decoder(with_prefix),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|(_, text, _)| text),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.json(), "merges": merges(gguf, vocabulary)?,
        },
    }))
}

fn normalizer(with_prefix: bool) -> Value {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    match with_prefix {
        true => json!({
            "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces],
        }),
        false => spaces,
    }
}

fn decoder(with_prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if with_prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// A token as two others.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    /// Of the token that they make.
    score: f32,
}

/// The merges, the best ones first: each token can be merged of any two that spell it.
fn merges<'a>(gguf: &Gguf<'a>, vocabulary: &Vocabulary<'a>) -> Result<Vec<Value>, GgufError> {
    let scores = scores(gguf, vocabulary)?;
    vocabulary.ids(gguf)?;
    let spells =
        |(_, _, kind): &(u32, &str, Kind)| matches!(kind, Kind::Normal | Kind::UserDefined);
    let ids: HashMap<&str, u32> =
        vocabulary.tokens().filter(spells).map(|(id, text, _)| (text, id)).collect();
    let mut merges = Vec::new();
    for (id, text, _) in vocabulary.tokens().filter(spells) {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(gguf.corrupt(format!("its token {id} has {} bytes", text.len())));
        }
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let known = splits.filter_map(|(left, right)| {
            Some((
                *ids.get(left)?,
                *ids.get(right)?,
                Merge { left, right, score: scores[id as usize] },
            ))
        });
        let mut known: Vec<_> = known.collect();
        known.sort_by_key(|(left, right, _)| (*left, *right));
        merges.extend(known.into_iter().map(|(_, _, merge)| merge));
    }
    merges.sort_by(Merge::order);
    Ok(merges.iter().map(|merge| json!([merge.left, merge.right])).collect())
}

impl Merge<'_> {
    /// High scores first; of equal ones, those of more characters on the left, then on the right.
    fn order(&self, other: &Self) -> Ordering {
        let characters = |text: &str| text.chars().count();
        other
            .score
            .total_cmp(&self.score)
            .then_with(|| characters(other.left).cmp(&characters(self.left)))
            .then_with(|| characters(other.right).cmp(&characters(self.right)))
    }
}

fn scores(gguf: &Gguf<'_>, vocabulary: &Vocabulary<'_>) -> Result<Vec<f32>, GgufError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores = gguf.required(KEY, gguf.floats(KEY)?)?;
    let tokens = vocabulary.texts.len();
    if scores.len() != tokens {
        return Err(gguf.corrupt(format!("it has {} scores for {tokens} tokens", scores.len())));
    }
    let normal = vocabulary.tokens().filter(|(_, _, kind)| *kind == Kind::Normal);
    let mut normal = normal.map(|(id, ..)| scores[id as usize]);
    // Converters without the original tokenizer.model write one number for all.
    let first = normal.next();
    if tokens > 2 && first.is_some_and(|first| normal.all(|score| score == first)) {
        return Err(gguf.corrupt("the scores of its tokens are all the same"));
    }
    Ok(scores)
}
