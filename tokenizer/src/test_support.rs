//! Small tokenizers for tests.

use serde_json::{Value, json};

use crate::{Tokenizer, spelling::ByteAlphabet};

/// A byte-level tokenizer: ids 0..=255 are the bytes, then some merges and added tokens.
pub fn byte_level_tokenizer() -> Tokenizer {
    let alphabet = ByteAlphabet::new();
    let spell =
        |bytes: &[u8]| -> String { bytes.iter().map(|&byte| alphabet.character(byte)).collect() };
    let mut vocab: Vec<String> = (0..=255).map(|byte| spell(&[byte])).collect();
    let mut merges = Vec::new();
    // The second half of the emoji merges with the letter behind it: a token of mixed parts.
    for (left, right) in [(" ", "a"), ("\u{F0}\u{9F}", ""), ("\u{98}\u{80}", "x"), ("a", "b")] {
        let latin1 = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<_>>();
        let (mut left, mut right) = (latin1(left), latin1(right));
        if right.is_empty() {
            right = left.split_off(1);
        }
        if left.len() == 2 {
            merges.push([spell(&left[..1]), spell(&left[1..])]);
            vocab.push(spell(&left));
        }
        merges.push([spell(&left), spell(&right)]);
        vocab.push(spell(&[left, right].concat()));
    }
    let added = |id: usize, content: &str, special: bool| {
        json!({ "id": id, "content": content, "special": special, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false })
    };
    let next = vocab.len();
    from_json(&json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst",
            "stride": 0 },
        "padding": null,
        "added_tokens": [added(next, "<|end|>", true), added(next + 1, "<think é>", false)],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false },
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "merges": merges,
            "vocab": vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id)))
                .collect::<serde_json::Map<_, _>>() },
    }))
}

pub(crate) fn from_json(value: &Value) -> Tokenizer {
    Tokenizer::from_bytes(value.to_string().as_bytes(), 1 << 20).expect("it is a tokenizer")
}
