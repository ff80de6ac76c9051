//! The metadata of a Hugging Face tokenizer, as converters write it.

use serde_json::Value;

use super::Writable;

/// What GGUF files say of a byte-level `tokenizer.json`, whose pre-tokenizer has the name `pre`.
pub fn tokenizer_metadata(tokenizer: &Value, pre: &str) -> Vec<(String, Writable)> {
    let (texts, types) = tokens(tokenizer);
    let merges = tokenizer["model"]["merges"].as_array().expect("merges").iter().map(|merge| {
        match merge.as_str() {
            Some(line) => line.to_string(),
            None => format!("{} {}", text(&merge[0]), text(&merge[1])),
        }
    });
    vec![
        ("tokenizer.ggml.model".into(), "gpt2".into()),
        ("tokenizer.ggml.pre".into(), pre.into()),
        ("tokenizer.ggml.tokens".into(), Writable::Texts(texts)),
        ("tokenizer.ggml.token_type".into(), Writable::I32s(types)),
        ("tokenizer.ggml.merges".into(), Writable::Texts(merges.collect())),
    ]
}

/// What GGUF files say of a SentencePiece tokenizer with these scores of its tokens.
pub fn sentencepiece_metadata(tokenizer: &Value, scores: &[f32]) -> Vec<(String, Writable)> {
    let (texts, mut types) = tokens(tokenizer);
    for (text, kind) in texts.iter().zip(&mut types) {
        match text.as_str() {
            "<unk>" => *kind = 2,
            text if text.starts_with("<0x") && text.len() == 6 => *kind = 6,
            _ => {}
        }
    }
    vec![
        ("tokenizer.ggml.model".into(), "llama".into()),
        ("tokenizer.ggml.pre".into(), "default".into()),
        ("tokenizer.ggml.tokens".into(), Writable::Texts(texts)),
        ("tokenizer.ggml.token_type".into(), Writable::I32s(types)),
        ("tokenizer.ggml.scores".into(), Writable::F32s(scores.to_vec())),
    ]
}

/// Texts and types by id; ids that no token has are unused ones.
fn tokens(tokenizer: &Value) -> (Vec<String>, Vec<i32>) {
    let vocabulary = tokenizer["model"]["vocab"].as_object().expect("a vocabulary");
    let mut tokens: Vec<(usize, &str, i32)> =
        vocabulary.iter().map(|(text, id)| (index(id), text.as_str(), 1)).collect();
    for token in tokenizer["added_tokens"].as_array().expect("added tokens") {
        let kind = if token["special"] == true { 3 } else { 4 };
        tokens.push((index(&token["id"]), text(&token["content"]), kind));
    }
    let count = tokens.iter().map(|(id, ..)| id + 1).max().unwrap_or(0);
    let mut texts: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![5; count];
    for (id, text, kind) in tokens {
        texts[id] = text.into();
        types[id] = kind;
    }
    (texts, types)
}

fn index(id: &Value) -> usize {
    id.as_u64().expect("an id") as usize
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}
