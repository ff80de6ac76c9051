//! A tokenizer that becomes GGUF metadata and then a `tokenizer.json` again gives the same ids.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use ::tokenizer::Tokenizer;
use gguf::test_support::{Writable, Writer, sentencepiece_metadata, tokenizer_metadata};
use gguf::{Gguf, tokenizer};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

const TEXTS: usize = 2000;

fn demo() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/tokenizer.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What the file made of this metadata says.
fn converted(metadata: Vec<(String, Writable)>) -> Tokenizer {
    let mut writer = Writer::default();
    writer.metadata = metadata;
    let file = writer.finish();
    let gguf = Gguf::parse(&file, Path::new("model.gguf")).unwrap();
    let text = tokenizer::tokenizer_json(&gguf).unwrap();
    Tokenizer::from_bytes(text.as_bytes(), 1 << 20).unwrap()
}

/// Texts of everything that tokenizers treat specially.
fn texts() -> Vec<String> {
    let parts = [
        "the",
        "The",
        " The",
        "ing",
        "'s",
        "'LL",
        "can't",
        "I'VE",
        "don’t",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "0",
        "12",
        "123",
        "1234567",
        "٣٤",
        "½",
        "Ⅷ",
        "é",
        "e\u{301}",
        "ﬁ",
        "ß",
        "naïve",
        "日本語",
        "한국어",
        "привет",
        "مرحبا",
        "हिन्दी",
        "😀",
        "👩‍👩‍👧",
        "\u{200b}",
        "\u{a0}",
        "_",
        "__init__",
        "==",
        "!=",
        "...",
        "?!",
        "({[",
        "]})",
        "//",
        "/* */",
        "<|im_end|>",
        "<|im_start|>user\n",
        "<tool_call>",
        "<tools",
        "</s>",
        "<s>",
        "<0x0A>",
        "▁",
        "a▁b",
        "HTTPServer",
        "camelCase",
        "A",
        "Z",
        "\u{1}",
        "$",
        "+",
        "~",
        "`",
        "|",
        "^",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let text = |_| {
        let count = rng.random_range(0..12);
        (0..count).map(|_| *parts.choose(&mut rng).unwrap()).collect()
    };
    (0..TEXTS).map(text).collect()
}

#[track_caller]
fn check_equal(name: &str, theirs: &Tokenizer, ours: &Tokenizer) {
    for text in texts() {
        for special in [false, true] {
            let [theirs, ours] = [theirs, ours].map(|it| it.encode(&text, special).unwrap());
            assert_eq!(theirs, ours, "{name}: {text:?}");
        }
    }
    assert_eq!(theirs.tokens(), ours.tokens(), "{name}");
    for id in 0..theirs.tokens() as u32 {
        assert_eq!(theirs.token_bytes(id), ours.token_bytes(id), "{name}: {id}");
        assert_eq!(theirs.is_special(id), ours.is_special(id), "{name}: {id}");
    }
}

/// The demo's vocabulary, cut as families do it. Patterns are those of their own files.
#[test]
fn byte_level_tokenizers_give_the_same_ids() {
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    };
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    let digits = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true}, gpt2]});
    let llama3 = split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    let qwen2 = split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    let own = demo()["pre_tokenizer"].clone();
    let cases = [
        ("stator-demo", own, Value::Null, false),
        ("llama-bpe", llama3, Value::Null, true),
        ("qwen2", qwen2, json!({"type": "NFC"}), false),
        ("gpt-2", gpt2, Value::Null, false),
        ("smollm", digits, Value::Null, false),
    ];
    for (pre, pre_tokenizer, normalizer, ignores_merges) in cases {
        let mut file = demo();
        file["pre_tokenizer"] = pre_tokenizer;
        file["normalizer"] = normalizer;
        file["model"]["ignore_merges"] = ignores_merges.into();
        let mut metadata = tokenizer_metadata(&file, pre);
        if pre == "llama-bpe" {
            file["post_processor"] = json!({"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<|im_start|>":
                    {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}});
            metadata.push(("tokenizer.ggml.bos_token_id".into(), Writable::U32(1)));
        }
        let theirs = Tokenizer::from_bytes(file.to_string().as_bytes(), 1 << 20).unwrap();
        let ours = converted(metadata);
        assert_eq!(ours.slow_because(), None, "{pre}");
        check_equal(pre, &theirs, &ours);
    }
}

#[test]
fn a_file_that_carries_its_tokenizer_is_believed() {
    let mut metadata = tokenizer_metadata(&demo(), "unknown");
    metadata.push(("tokenizer.huggingface.json".into(), Writable::Text(demo().to_string())));
    let theirs = Tokenizer::from_bytes(demo().to_string().as_bytes(), 1 << 20).unwrap();
    check_equal("huggingface.json", &theirs, &converted(metadata));
}

#[test]
fn texts_begin_and_end_as_the_file_says() {
    let check = |settings: &[(&str, bool)], expected: &[u32]| {
        let mut metadata = tokenizer_metadata(&demo(), "stator-demo");
        metadata.push(("tokenizer.ggml.bos_token_id".into(), Writable::U32(1)));
        metadata.push(("tokenizer.ggml.eos_token_id".into(), Writable::U32(2)));
        for (name, on) in settings {
            metadata.push((format!("tokenizer.ggml.add_{name}_token"), Writable::Bool(*on)));
        }
        let ours = converted(metadata);
        assert_eq!(ours.encode("", true).unwrap(), expected, "{settings:?}");
        assert!(ours.encode("", false).unwrap().is_empty());
    };
    check(&[], &[]);
    check(&[("bos", true)], &[1]);
    check(&[("eos", true), ("bos", false)], &[2]);
    check(&[("eos", true), ("bos", true)], &[1, 2]);
}

const SENTENCES: &str = "a model that is served has weights and a tokenizer . the tokenizer turns text \
    into tokens and the weights turn tokens into other tokens . when the same text comes again the \
    tokens are the same tokens and so is the answer . whether the answer is wrong or right is not the \
    question here";

/// A small SentencePiece model: characters, then pieces by how often pairs of them meet. The score of
/// a piece is its rank, as trainers of such models have it.
struct Pieces {
    texts: Vec<String>,
    scores: Vec<f32>,
}

impl Pieces {
    fn train() -> Self {
        let mut texts: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_string).to_vec();
        texts.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
        let words: Vec<String> =
            SENTENCES.split_whitespace().map(|word| format!("\u{2581}{word}")).collect();
        let mut words: Vec<Vec<String>> =
            words.iter().map(|word| word.chars().map(String::from).collect()).collect();
        let mut characters: Vec<String> = words.iter().flatten().cloned().collect();
        characters.sort();
        characters.dedup();
        let mut merged = Vec::new();
        while let Some((left, right)) = most_frequent(&words) {
            merged.push(format!("{left}{right}"));
            for word in &mut words {
                join(word, &left, &right);
            }
        }
        let scored = 3 + 256 + merged.len() + characters.len();
        texts.extend(merged);
        texts.extend(characters);
        let scores = (0..scored).map(|id| if id < 259 { 0.0 } else { -((id - 258) as f32) });
        Self { texts, scores: scores.collect() }
    }

    /// As the SentencePiece library does it: of all neighbours that make a piece, those of the best
    /// score join, the first of them first.
    fn encode(&self, text: &str) -> Vec<u32> {
        let pieces = self.texts.iter().enumerate().skip(259);
        let ids: HashMap<&str, u32> = pieces.map(|(id, text)| (text.as_str(), id as u32)).collect();
        let mut symbols: Vec<String> = format!("\u{2581}{}", text.replace(' ', "\u{2581}"))
            .chars()
            .map(String::from)
            .collect();
        loop {
            let score = |pair: &[String]| {
                ids.get(pair.concat().as_str()).map(|id| self.scores[*id as usize])
            };
            let scored = symbols.windows(2).enumerate();
            let scored = scored.filter_map(|(at, pair)| score(pair).map(|score| (at, score)));
            let best = scored.fold(None, |best: Option<(usize, f32)>, next| match best {
                Some(best) if best.1 >= next.1 => Some(best),
                _ => Some(next),
            });
            let Some((at, _)) = best else { break };
            let right = symbols.remove(at + 1);
            symbols[at].push_str(&right);
        }
        let of = |symbol: &String| match ids.get(symbol.as_str()) {
            Some(id) => vec![*id],
            None => symbol.bytes().map(|byte| u32::from(byte) + 3).collect(),
        };
        symbols.iter().flat_map(of).collect()
    }
}

fn most_frequent(words: &[Vec<String>]) -> Option<(String, String)> {
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    for pair in words.iter().flat_map(|word| word.windows(2)) {
        *counts.entry((pair[0].clone(), pair[1].clone())).or_default() += 1;
    }
    let best = counts.into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    best.filter(|(_, count)| *count > 1).map(|(pair, _)| pair)
}

fn join(word: &mut Vec<String>, left: &str, right: &str) {
    let mut at = 0;
    while at + 1 < word.len() {
        if word[at] == left && word[at + 1] == right {
            let right = word.remove(at + 1);
            word[at].push_str(&right);
        }
        at += 1;
    }
}

#[test]
fn sentencepiece_tokenizers_give_the_ids_of_sentencepiece() {
    let pieces = Pieces::train();
    let vocabulary: Vec<_> = pieces.texts.iter().zip(0..).collect();
    assert!(vocabulary.len() > 300, "{}", vocabulary.len());
    let vocab: serde_json::Map<String, Value> =
        vocabulary.iter().map(|(text, id)| ((*text).clone(), json!(id))).collect();
    let special = |id: usize| json!({"id": id, "content": pieces.texts[id], "special": true});
    let file = json!({"added_tokens": [special(0), special(1), special(2)],
        "model": {"vocab": vocab}});
    let mut metadata = sentencepiece_metadata(&file, &pieces.scores);
    metadata.push(("tokenizer.ggml.bos_token_id".into(), Writable::U32(1)));
    let ours = converted(metadata);
    let words: Vec<&str> = SENTENCES.split_whitespace().collect();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let check = |text: &str| {
        let mut expected = pieces.encode(text);
        assert_eq!(ours.encode(text, false).unwrap(), expected, "{text:?}");
        expected.insert(0, 1);
        assert_eq!(ours.encode(text, true).unwrap(), expected, "{text:?}");
        assert_eq!(ours.decode(&expected[1..]).unwrap(), text);
    };
    // Markup and what spells spaces are other tokens by design.
    texts().iter().filter(|text| !text.contains(['<', '\u{2581}'])).for_each(|text| {
        if !text.is_empty() {
            check(text);
        }
    });
    for _ in 0..TEXTS {
        let count = rng.random_range(1..8);
        let text: String = (0..count)
            .map(|_| {
                let word = words.choose(&mut rng).unwrap();
                let cut = rng.random_range(0..=word.len());
                format!("{}{}", &word[..cut], if rng.random() { " " } else { "" })
            })
            .collect();
        if !text.is_empty() {
            check(&text);
        }
    }
    assert_eq!(ours.encode("a<s>", false).unwrap().last(), Some(&1));
}
