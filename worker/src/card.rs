//! The model card: what gateways need to turn requests for a model into tokens and back.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::{Facts, LoadError, parse_json, read_optional};
use protocol::v1;
use serde_json::Value;

const ADVICE: &str = "MODEL must hold a tokenizer.json (Hugging Face fast tokenizer)";

/// Reads the card of a model directory; `name` is what clients will ask for. Errors: a file is
/// missing or not JSON.
pub fn load_card(directory: &Path, name: &str, facts: &Facts) -> Result<v1::ModelCard, LoadError> {
    let path = directory.join("tokenizer.json");
    let tokenizer_json = std::fs::read(&path).map_err(|source| LoadError::Unreadable {
        path,
        source,
        advice: ADVICE,
    })?;
    let settings = read_json(&directory.join("tokenizer_config.json"))?;
    let template_file = read_optional(&directory.join("chat_template.jinja"))?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(v1::ModelCard {
        name: name.to_string(),
        context_tokens: facts.context_tokens as u32,
        tokenizer_json: tokenizer_json.into(),
        chat_template: template_file.or_else(|| template_of(&settings)),
        bos_token: token_of(&settings["bos_token"]),
        eos_token: token_of(&settings["eos_token"]),
        vocabulary_size: facts.vocabulary_size as u32,
        created_s: since_epoch.as_secs(),
    })
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
