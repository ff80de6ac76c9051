//! The encoder of this crate gives the ids of the `tokenizers` crate, whatever the text.

mod support;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use support::{Shape, byte_level, patterns, text};
use tokenizer::Tokenizer;

/// Both paths on the same file.
struct Both {
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

impl Both {
    fn load(file: &Value) -> Both {
        let bytes = file.to_string().into_bytes();
        let ours = Tokenizer::from_bytes(&bytes, 1 << 20).expect("we load it");
        let theirs = tokenizers::Tokenizer::from_bytes(&bytes).expect("they load it");
        Both { ours, theirs }
    }

    fn check(&self, text: &str) {
        for add_special_tokens in [false, true] {
            let ours = self.ours.encode(text, add_special_tokens).expect("we encode it");
            let theirs = self.theirs.encode_fast(text, add_special_tokens).expect("they encode it");
            assert_eq!(ours, theirs.get_ids(), "{text:?}");
        }
    }
}

/// Random texts through a file that this crate's encoder does.
fn check(shape: &Shape, seed: u64) {
    let both = Both::load(&shape.train(seed, None));
    assert_eq!(both.ours.slow_because(), None);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    both.check("");
    for _ in 0..300 {
        both.check(&text(&mut random, 4));
    }
    for _ in 0..100 {
        both.check(&text(&mut random, 100));
    }
}

#[test]
fn gpt2() {
    let mut shape = Shape::new(byte_level(true));
    shape.post_processor = byte_level(false);
    check(&shape, 1);
    check(&Shape::new(patterns(&[support::GPT2])), 2);
}

#[test]
fn llama3() {
    let mut shape = Shape::new(patterns(&[support::LLAMA3]));
    shape.ignore_merges = true;
    let template = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "a", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
            { "SpecialToken": { "id": "b", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
            { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "a": { "id": "a", "ids": [3, 4], "tokens": ["a", "a"] },
            "b": { "id": "b", "ids": [5], "tokens": ["b"] } } });
    shape.post_processor =
        json!({ "type": "Sequence", "processors": [byte_level(false), template] });
    check(&shape, 3);
}

#[test]
fn qwen() {
    for (pattern, seed) in [(support::QWEN, 4), (support::QWEN_MARKS, 5)] {
        let mut shape = Shape::new(patterns(&[pattern]));
        shape.normalizer = json!({ "type": "NFC" });
        check(&shape, seed);
    }
}

#[test]
fn o200k() {
    let mut shape = Shape::new(patterns(&[support::O200K]));
    shape.ignore_merges = true;
    check(&shape, 6);
    shape.pre_tokenizer["pretokenizers"][0]["behavior"] = json!("Removed");
    shape.pre_tokenizer["pretokenizers"][0]["invert"] = json!(true);
    check(&shape, 7);
}

#[test]
fn deepseek() {
    let steps = [support::DEEPSEEK_NUMBERS, support::DEEPSEEK_HAN, support::DEEPSEEK];
    let mut shape = Shape::new(patterns(&steps));
    shape.normalizer = json!({ "type": "Sequence", "normalizers": [] });
    check(&shape, 8);
}

#[test]
fn digits() {
    for individual_digits in [true, false] {
        let digits = json!({ "type": "Digits", "individual_digits": individual_digits });
        check(
            &Shape::new(json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] })),
            9,
        );
    }
}
