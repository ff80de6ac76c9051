//! The tokenizer of a file, as the text of a Hugging Face `tokenizer.json`, and what goes with it.

mod byte_level;
mod pre_tokenizer;
mod sentencepiece;
mod vocabulary;

use serde_json::{Value, json};

use crate::{Gguf, GgufError};
use vocabulary::Vocabulary;

const SUPPORTED_MODELS: &str =
    "tokenizers of model gpt2 (byte-level BPE) and llama (SentencePiece)";

/// Tokens that end a message in the families that are served, where their files mark them as control
/// tokens: files name one end at most, and models of several ends rely on all.
const ENDS: [&str; 5] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"];

/// The text of a `tokenizer.json` that gives the same ids. Where the file carries one, that is it.
/// Errors: the file has no tokenizer, one that contradicts itself, or one of an unknown kind.
pub fn tokenizer_json(gguf: &Gguf<'_>) -> Result<String, GgufError> {
    if let Some(text) = gguf.text("tokenizer.huggingface.json")? {
        return Ok(text.to_string());
    }
    let model = gguf.text("tokenizer.ggml.model")?;
    let vocabulary = Vocabulary::read(gguf)?;
    let converted = match gguf.required("tokenizer.ggml.model", model)? {
        "gpt2" => byte_level::convert(gguf, &vocabulary)?,
        "llama" => sentencepiece::convert(gguf, &vocabulary)?,
        other => {
            return Err(gguf.unsupported(format!("a tokenizer of model {other}"), SUPPORTED_MODELS));
        }
    };
    Ok(converted.to_string())
}

/// The chat template, if there is one.
pub fn chat_template<'a>(gguf: &Gguf<'a>) -> Result<Option<&'a str>, GgufError> {
    gguf.text("tokenizer.chat_template")
}

/// The text of the token that begins a text, if there is one.
pub fn bos_token<'a>(gguf: &Gguf<'a>) -> Result<Option<&'a str>, GgufError> {
    named_token(gguf, "bos")
}

/// The text of the token that ends a text, if there is one.
pub fn eos_token<'a>(gguf: &Gguf<'a>) -> Result<Option<&'a str>, GgufError> {
    named_token(gguf, "eos")
}

fn named_token<'a>(gguf: &Gguf<'a>, name: &str) -> Result<Option<&'a str>, GgufError> {
    let vocabulary = Vocabulary::read_if_any(gguf)?;
    let id = vocabulary.named(gguf, name)?;
    Ok(id.and_then(|id| vocabulary.texts.get(id as usize).copied()))
}

/// The ids of all tokens that end a text or a message, in order.
pub fn end_token_ids(gguf: &Gguf<'_>) -> Result<Vec<u32>, GgufError> {
    let vocabulary = Vocabulary::read_if_any(gguf)?;
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(vocabulary.named(gguf, name)?);
    }
    ids.extend(vocabulary.control().filter(|(_, text)| ENDS.contains(text)).map(|(id, _)| id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// What a file puts around a text: its own begin and end tokens, where it says so.
fn post_processor(
    gguf: &Gguf<'_>,
    vocabulary: &Vocabulary<'_>,
    begins_by_default: bool,
) -> Result<Value, GgufError> {
    let (mut single, mut special) =
        (vec![json!({"Sequence": {"id": "A", "type_id": 0}})], json!({}));
    let mut add = |name: &str, by_default: bool, at_end: bool| {
        let on = gguf.bool(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(by_default);
        let Some(id) = vocabulary.named(gguf, name)?.filter(|_| on) else { return Ok(()) };
        let text = vocabulary.texts[id as usize];
        let place = if at_end { single.len() } else { 0 };
        single.insert(place, json!({"SpecialToken": {"id": text, "type_id": 0}}));
        special[text] = json!({"id": text, "ids": [id], "tokens": [text]});
        Ok(())
    };
    add("bos", begins_by_default, false)?;
    add("eos", false, true)?;
    if single.len() == 1 {
        return Ok(Value::Null);
    }
    let mut pair = single.clone();
    pair.push(json!({"Sequence": {"id": "B", "type_id": 1}}));
    Ok(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special,
    }))
}
