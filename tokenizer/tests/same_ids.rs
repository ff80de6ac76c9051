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

#[test]
fn bundled_model() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).expect(path);
    let both =
        Both::load(&serde_json::from_str(&read("models/demo/tokenizer.json")).expect("json"));
    assert_eq!(both.ours.slow_because(), None);
    for path in ["ARCHITECTURE.md", "README.md", "tokenizer/src/lib.rs", "models/demo/corpus.py"] {
        both.check(&read(path));
    }
    let mut random = ChaCha8Rng::seed_from_u64(10);
    for _ in 0..100 {
        both.check(&text(&mut random, 100));
    }
}

/// Long pieces, and those whose length is the business of the other regex engine.
#[test]
fn long_pieces() {
    for pre_tokenizer in [byte_level(true), patterns(&[support::QWEN]), byte_level(false)] {
        let both = Both::load(&Shape::new(pre_tokenizer).train(11, None));
        assert_eq!(both.ours.slow_because(), None);
        for bytes in [62, 63, 64, 65, 66, 200] {
            for part in ["a", "the", "\u{301}", " \n", "\u{10ffff}", "日本", "1", "-"] {
                both.check(&part.repeat(bytes / part.len()));
            }
        }
        for bytes in [16_384, 16_386] {
            for part in ["a", " ", "\n", "\0"] {
                both.check(&format!("x{}  the", part.repeat(bytes)));
            }
        }
    }
}

/// A vocabulary of "a", "b", "c" and such, with merges of a list.
fn by_hand(merges: Value, words: &[&str], ignore_merges: bool) -> Value {
    let mut file = Shape { vocabulary_tokens: 256, ..Shape::new(byte_level(true)) }.train(12, None);
    for word in words {
        let vocab = file["model"]["vocab"].as_object_mut().expect("a vocabulary");
        vocab.insert((*word).to_owned(), json!(vocab.len()));
    }
    file["added_tokens"] = json!([]);
    file["model"]["merges"] = merges;
    file["model"]["ignore_merges"] = json!(ignore_merges);
    file
}

#[test]
fn odd_vocabularies() {
    let words = ["ab", "bc", "abc", "aa", "aaa", "aaaa", "abab", "cab", "xyz"];
    for (merges, why) in [
        (json!([["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]]), "the same token in two ways"),
        (json!([["b", "c"], ["a", "b"], ["ab", "c"], ["a", "b"]]), "a pair twice"),
        (json!([["a", "a"], ["aa", "a"], ["aa", "aa"]]), "pairs that overlap"),
        (json!([["aa", "aa"], ["a", "aa"], ["a", "a"]]), "later merges first"),
        (json!(["#version: 0.2", "a b", "ab ab", "c ab"]), "lines"),
        (json!([]), "none"),
    ] {
        for ignore_merges in [false, true] {
            let both = Both::load(&by_hand(merges.clone(), &words, ignore_merges));
            assert_eq!(both.ours.slow_because(), None, "{why}");
            for number in 0..4_u32.pow(5) {
                let letter = |place| ['a', 'b', 'c', ' '][(number >> (2 * place)) as usize % 4];
                both.check(&(0..5).map(letter).collect::<String>());
            }
            for text in ["xyz xyz", "aaaaaaaaa", &"ab".repeat(100), &"aaabc".repeat(99)] {
                both.check(text);
            }
        }
    }
}

/// What this crate's encoder does not do, it leaves to the `tokenizers` crate.
#[test]
fn leaves_other_files_alone() {
    let file = Shape::new(patterns(&[support::QWEN])).train(13, None);
    let split = |pattern: &str| patterns(&[pattern])["pretokenizers"][0].clone();
    let then_byte_level =
        |step: Value| json!({ "type": "Sequence", "pretokenizers": [step, byte_level(false)] });
    let mut prefixed = byte_level(true);
    prefixed["add_prefix_space"] = json!(true);
    for (pointer, value, reason) in [
        ("/model/dropout", json!(0.5), "has dropout"),
        ("/model/end_of_word_suffix", json!("</w>"), "marks the beginning or the end of words"),
        ("/normalizer", json!({ "type": "NFKC" }), "has a normalizer other than NFC"),
        (
            "/added_tokens/0/lstrip",
            json!(true),
            "has added tokens that depend on the text around them",
        ),
        (
            "/added_tokens/3/single_word",
            json!(true),
            "has added tokens that depend on the text around them",
        ),
        (
            "/pre_tokenizer",
            Value::Null,
            "has a pre-tokenizer other than patterns and then byte level",
        ),
        ("/pre_tokenizer", prefixed, "has a pre-tokenizer other than patterns and then byte level"),
        (
            "/pre_tokenizer",
            split("a"),
            "has a pre-tokenizer other than patterns and then byte level",
        ),
        (
            "/pre_tokenizer",
            then_byte_level(split(r"\p{L}++|\s+")),
            "has a pattern that no automaton does",
        ),
        (
            "/pre_tokenizer",
            then_byte_level(split(r"a(?=b)|\s+")),
            "has a pattern that no automaton does",
        ),
        (
            "/pre_tokenizer",
            then_byte_level(split(r"\bthe\b|\s+")),
            "has a pattern that no automaton does",
        ),
        (
            "/pre_tokenizer",
            then_byte_level(split(r"a*|\s+(?!\S)|\s+")),
            "has a pattern that no automaton does",
        ),
        (
            "/pre_tokenizer",
            then_byte_level(json!({ "type": "Punctuation", "behavior": "Isolated" })),
            "has a pre-tokenizer other than patterns and then byte level",
        ),
        (
            "/post_processor",
            json!({ "type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2] }),
            "has a post-processor that does more than enclose a text",
        ),
    ] {
        let mut file = file.clone();
        *file.pointer_mut(pointer).expect(pointer) = value;
        let both = Both::load(&file);
        assert_eq!(both.ours.slow_because(), Some(reason), "{pointer}");
        if reason != "has dropout" {
            let mut random = ChaCha8Rng::seed_from_u64(14);
            both.check(&text(&mut random, 50));
        }
    }
}

#[test]
fn leaves_other_models_alone() {
    let word_level = json!({ "version": "1.0", "added_tokens": [], "decoder": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": { "?": 0, "the": 1 }, "unk_token": "?" } });
    let both = Both::load(&word_level);
    assert_eq!(both.ours.slow_because(), Some("has no BPE model"));
    both.check("the end of the");

    let pieces = json!({ "version": "1.0", "added_tokens": [], "decoder": null,
        "pre_tokenizer": byte_level(true),
        "model": { "type": "BPE", "vocab": { "a": 0 }, "merges": [] } });
    let both = Both::load(&pieces);
    assert_eq!(both.ours.slow_because(), Some("has no token for some byte"));
    both.check("a ba");
}
