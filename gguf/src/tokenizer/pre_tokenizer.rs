//! How byte-level tokenizers cut a text before they merge: by `tokenizer.ggml.pre`, which names what
//! the `tokenizer.json` of a family spells out.

use serde_json::{Value, json};

use crate::{Gguf, GgufError};

/// One way to cut.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Texts are brought to normal form C first.
    nfc: bool,
    /// A piece that is a token as a whole is that token, whatever its merges.
    pub ignores_merges: bool,
    /// Whether texts begin with the begin token where the file does not say.
    pub adds_bos: bool,
}

enum Step {
    /// What matches is a piece, and so is what lies between.
    Split(&'static str),
    /// Each digit is a piece.
    Digits,
    /// GPT-2's pattern, which the step that spells bytes brings.
    Gpt2,
}

const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], steps: &[], nfc: false, ignores_merges: false, adds_bos: false };

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pattern of models/demo.
const DEMO: &str = r" ?\p{Ll}+|\p{Lu}\p{L}*|\p{L}+|\p{N}|[/_@.\-#]| ?[^\s\p{L}\p{N}/_@.\-#]+|\s+";

const KNOWN: [PreTokenizer; 9] = [
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        steps: &[Step::Split(LLAMA_3)],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["smaug-bpe", "dbrx"], steps: &[Step::Split(LLAMA_3)], ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2"],
        steps: &[Step::Split(QWEN_2)],
        nfc: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["tekken"],
        steps: &[Step::Split(TEKKEN)],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["gpt-2", "mpt", "olmo", "phi-2"], steps: &[Step::Gpt2], ..PLAIN },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"],
        steps: &[Step::Digits, Step::Gpt2],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[
            Step::Split(r"[\r\n]"),
            Step::Split(r"\s?\p{L}+"),
            Step::Split(r"\s?\p{P}+"),
            Step::Split("[一-龥ࠀ-一가-퟿]+"),
            Step::Digits,
        ],
        ..PLAIN
    },
    PreTokenizer { names: &["stator-demo"], steps: &[Step::Split(DEMO)], ..PLAIN },
    // What llama.cpp does with files that name nothing.
    PreTokenizer {
        names: &["default"],
        steps: &[
            Step::Split(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Split(GPT_2),
            Step::Split(r"\p{N}+"),
            Step::Split("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
];

impl PreTokenizer {
    /// The one that a file names. Errors: it is not known.
    pub fn read(gguf: &Gguf<'_>) -> Result<&'static Self, GgufError> {
        let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let found = KNOWN.iter().find(|known| known.names.contains(&name));
        found.ok_or_else(|| {
            let names: Vec<_> = KNOWN.iter().flat_map(|known| known.names).copied().collect();
            gguf.unsupported(format!("pre-tokenizer {name}"), names.join(", "))
        })
    }

    pub fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub fn json(&self) -> Value {
        let uses_gpt2 = self.steps.iter().any(|step| matches!(step, Step::Gpt2));
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": uses_gpt2,
        });
        let mut steps: Vec<Value> = self.steps.iter().filter_map(Step::json).collect();
        steps.push(byte_level);
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

impl Step {
    fn json(&self) -> Option<Value> {
        match self {
            Self::Split(pattern) => Some(json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false,
            })),
            Self::Digits => Some(json!({"type": "Digits", "individual_digits": true})),
            Self::Gpt2 => None,
        }
    }
}
