//! The model card: what gateways need to turn requests for a model into tokens and back.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::{Facts, LoadError, parse_json, read_optional};
use gguf::{Gguf, tokenizer};
use protocol::v1;
use serde_json::Value;

const ADVICE: &str = "MODEL must hold a tokenizer.json (Hugging Face fast tokenizer)";

/// Reads the card of a model directory or a GGUF file; `name` is what clients will ask for. Errors: a
/// file is missing, not JSON, or has a tokenizer of an unknown kind.
pub fn load_card(model: &Path, name: &str, facts: &Facts) -> Result<v1::ModelCard, LoadError> {
    let texts = match model.is_file() {
        true => Texts::of_gguf(model)?,
        false => Texts::of_directory(model)?,
    };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(v1::ModelCard {
        name: name.to_string(),
        context_tokens: facts.context_tokens as u32,
        tokenizer_json: texts.tokenizer_json.into(),
        chat_template: texts.chat_template,
        bos_token: texts.bos_token,
        eos_token: texts.eos_token,
        vocabulary_size: facts.vocabulary_size as u32,
        created_s: since_epoch.as_secs(),
    })
}

/// What a model's files say of its texts.
struct Texts {
    tokenizer_json: Vec<u8>,
    chat_template: Option<String>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl Texts {
    fn of_gguf(path: &Path) -> Result<Self, LoadError> {
        let file = gguf::map(path)?;
        let gguf = Gguf::parse(&file, path)?;
        Ok(Self {
            tokenizer_json: tokenizer::tokenizer_json(&gguf)?.into_bytes(),
            chat_template: tokenizer::chat_template(&gguf)?.map(str::to_string),
            bos_token: tokenizer::bos_token(&gguf)?.map(str::to_string),
            eos_token: tokenizer::eos_token(&gguf)?.map(str::to_string),
        })
    }

    fn of_directory(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join("tokenizer.json");
        let tokenizer_json = std::fs::read(&path).map_err(|source| LoadError::Unreadable {
            path,
            source,
            advice: ADVICE,
        })?;
        let settings = read_json(&directory.join("tokenizer_config.json"))?;
        let template_file = read_optional(&directory.join("chat_template.jinja"))?;
        Ok(Self {
            tokenizer_json,
            chat_template: template_file.or_else(|| template_of(&settings)),
            bos_token: token_of(&settings["bos_token"]),
            eos_token: token_of(&settings["eos_token"]),
        })
    }
}

fn read_json(path: &Path) -> Result<Value, LoadError> {
    let Some(text) = read_optional(path)? else { return Ok(Value::Null) };
    parse_json(path, &text)
}

/// A template, or the one named "default" of several.
fn template_of(settings: &Value) -> Option<String> {
    let template = &settings["chat_template"];
    if let Some(text) = template.as_str() {
        return Some(text.to_string());
    }
    let named = template.as_array()?.iter().find(|named| named["name"] == "default")?;
    named["template"].as_str().map(str::to_string)
}

/// A token given as text, or as an object with its text as `content`.
fn token_of(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}
