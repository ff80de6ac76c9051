//! Tokenizer files like those of known models, and texts with what is hard about them.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;

pub const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const QWEN_MARKS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const DEEPSEEK_NUMBERS: &str = r"\p{N}{1,3}";
pub const DEEPSEEK_HAN: &str = r"[一-龥\x{3040}-ゟ゠-ヿ]+";
pub const DEEPSEEK: &str = r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a test tokenizer is made of.
pub struct Shape {
    pub pre_tokenizer: Value,
    pub normalizer: Value,
    pub post_processor: Value,
    /// Content, and whether it is matched in the normal form.
    pub added: Vec<(&'static str, bool)>,
    pub ignore_merges: bool,
    pub vocabulary_tokens: usize,
}

impl Shape {
    pub fn new(pre_tokenizer: Value) -> Shape {
        Shape {
            pre_tokenizer,
            normalizer: Value::Null,
            post_processor: Value::Null,
            added: vec![
                ("<|im_start|>", false),
                ("<|im_end|>", false),
                ("<|im_end|>\n", false),
                ("<think>", true),
                ("e\u{301}nd", true),
                ("x\u{1F600}", false),
            ],
            ignore_merges: false,
            vocabulary_tokens: 1500,
        }
    }

    /// The file, with a vocabulary trained on texts of `seed`, or on `corpus`.
    pub fn train(&self, seed: u64, corpus: Option<&[String]>) -> Value {
        let added_token = |(content, normalized): &(&str, bool)| {
            json!({ "id": 0, "content": content, "special": content.starts_with("<|"),
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized })
        };
        let untrained = json!({
            "version": "1.0", "added_tokens": [], "truncation": null, "padding": null,
            "normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer,
            "post_processor": null, "decoder": byte_level(false),
            "model": { "type": "BPE", "vocab": {}, "merges": [] },
        });
        let mut tokenizer: tokenizers::Tokenizer =
            serde_json::from_value(untrained).expect("it is a tokenizer");
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(self.vocabulary_tokens)
            .initial_alphabet(
                tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect(),
            )
            .build()
            .into();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let made: Vec<String> = (0..60).map(|_| text(&mut random, 300)).collect();
        let texts = corpus.unwrap_or(&made);
        tokenizer.train(&mut trainer, texts.iter().map(String::as_str)).expect("it can be trained");
        let mut file = serde_json::to_value(&tokenizer).expect("it has a file");
        let vocabulary = file["model"]["vocab"].as_object().map_or(0, |vocab| vocab.len());
        let mut added: Vec<Value> = self.added.iter().map(added_token).collect();
        for (number, token) in added.iter_mut().enumerate() {
            token["id"] = json!(vocabulary + number);
        }
        file["added_tokens"] = json!(added);
        file["post_processor"] = self.post_processor.clone();
        file["model"]["ignore_merges"] = json!(self.ignore_merges);
        file
    }
}

pub fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex })
}

/// Patterns one after the other, and then byte level.
pub fn patterns(patterns: &[&str]) -> Value {
    let split = |pattern: &&str| {
        json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false })
    };
    let mut steps: Vec<Value> = patterns.iter().map(split).collect();
    steps.push(byte_level(false));
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// Parts of about so many texts' worth of trouble: words, whitespace, digits, contractions, scripts,
/// combining marks, emoji, added tokens and pieces of them, control characters, random characters.
pub fn text(random: &mut ChaCha8Rng, parts_max: usize) -> String {
    const PARTS: &[&str] = &[
        " the",
        "the",
        "The",
        " THE",
        "ing",
        "tion",
        " a",
        "I",
        "don",
        "cannot",
        "straße",
        "ﬁ",
        "ǅ",
        "'s",
        "'S",
        "'\u{17F}",
        "'ll",
        "'Ll",
        "'re",
        "'t",
        "'",
        "’s",
        "'dX",
        "'ve",
        " 's",
        "'M",
        " ",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\n\n",
        " \n",
        "\u{a0}",
        "\u{2003}",
        "\u{3000}",
        "\u{85}",
        "\u{2028}",
        "\u{b}",
        "\u{c}",
        "\u{200b}",
        "\u{feff}",
        "\u{1680}",
        "0",
        "7",
        "42",
        "123",
        "1234567",
        "½",
        "²",
        "Ⅷ",
        "٣",
        "१२३४",
        "𝟘",
        "〇",
        "一二三",
        ".",
        ",",
        "!",
        "...",
        "?!",
        "-",
        "--",
        "_",
        "/",
        "//",
        "(",
        ")",
        "{}",
        "#",
        "@",
        "$",
        "€",
        "+",
        "=",
        "«",
        "…",
        ".\n",
        "!\r\n\r\n",
        "</",
        "/>\n",
        "a.b",
        "=a",
        "\"x\"",
        "\\n",
        "日本語",
        "の",
        "カタカナ",
        "ー",
        "中文字",
        "龥",
        "龦",
        "한국어",
        "русский",
        "Ελλάς",
        "עברית",
        "العربية",
        "हिन्दी",
        "ไทย",
        "ʰ",
        "ª",
        "é",
        "e\u{301}",
        "e\u{301}nd",
        "énd",
        "\u{301}",
        "q\u{307}\u{323}",
        "\u{1100}\u{1161}\u{11A8}",
        "\u{212B}",
        "\u{2126}",
        "\u{0958}",
        "Å",
        "\u{93c}",
        "\u{20dd}",
        "1\u{20e3}",
        "😀",
        "x😀",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "❤\u{fe0f}",
        "👍🏽",
        "\u{fe0f}",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>\n",
        "<|im_",
        "<think>",
        "<think",
        "</think>",
        "<|",
        "\0",
        "\u{7f}",
        "\u{ad}",
        "\u{1b}",
        "\u{fffd}",
        "\u{10ffff}",
        "\u{e000}",
        "\u{378}",
    ];
    let mut text = String::new();
    for _ in 0..random.random_range(1..=parts_max) {
        match random.random_range(0..20) {
            0 => text.push(random.random()),
            1 => text.push(char::from(random.random_range(0..128))),
            2 => text.push(char::from_u32(random.random_range(0..0x3000)).unwrap_or('x')),
            3 => {
                let part = PARTS.choose(random).copied().unwrap_or_default();
                text.push_str(&part.repeat(random.random_range(1..30)));
            }
            4..8 => {
                let letter = |_| char::from(b'a' + random.random_range(0..26));
                text.extend((0..6).map(letter));
            }
            _ => text.push_str(PARTS.choose(random).copied().unwrap_or_default()),
        }
    }
    text
}
