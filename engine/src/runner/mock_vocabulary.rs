//! What a mock takes from a model directory: the words it may say and how long a context is. No
//! weights and no supported architecture are needed.

use std::path::Path;

use gguf::Gguf;
use serde_json::{Value, json};

use crate::LoadError;
use crate::model::{parse_json, read_optional};

/// Where `config.json` does not say.
const CONTEXT_TOKENS: u64 = 32_768;

/// What a mock pretends to speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MockVocabulary {
    /// Token ids are below this.
    pub vocabulary_size: usize,
    /// The tokens it chooses from, at least one: whole words or parts of words, so that its text
    /// can be read and each token has some.
    pub words: Vec<u32>,
    /// Longest context.
    pub context_tokens: usize,
    /// Tokens that end a text, where a grammar says so.
    pub eos_token_ids: Vec<u32>,
}

impl MockVocabulary {
    /// Reads `tokenizer.json`, and `config.json` where there is one, or a GGUF file. Errors: one
    /// sentence.
    pub fn load(model: &Path) -> Result<Self, LoadError> {
        match model.is_file() {
            true => Self::read(model, model, &of_gguf(model)?),
            false => {
                let (tokenizer, config) = (model.join("tokenizer.json"), model.join("config.json"));
                Self::read(&tokenizer, &config, &of_directory(&tokenizer, &config)?)
            }
        }
    }

    /// The paths are for errors.
    fn read(
        tokenizer_path: &Path,
        config_path: &Path,
        [tokenizer, config]: &[Value; 2],
    ) -> Result<Self, LoadError> {
        let context_tokens = config["max_position_embeddings"].as_u64().unwrap_or(CONTEXT_TOKENS);
        if !(2..=1 << 28).contains(&context_tokens) {
            let problem = format!("max_position_embeddings is {context_tokens}");
            return Err(LoadError::Corrupt { path: config_path.into(), problem });
        }
        let tokens = tokens_of(&tokenizer["model"]["vocab"]);
        let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let added_ids: Vec<u32> = added.filter_map(|token| token["id"].as_u64()).map(id).collect();
        let ids = tokens.iter().map(|(_, id)| *id).chain(added_ids.iter().copied());
        let Some(last) = ids.max() else {
            let problem = "it has no vocabulary".to_string();
            return Err(LoadError::Corrupt { path: tokenizer_path.into(), problem });
        };
        if last >= 1 << 26 {
            let problem = format!("it has a token with the id {last}");
            return Err(LoadError::Corrupt { path: tokenizer_path.into(), problem });
        }
        let may_be_said = |(text, id): &&(String, u32)| is_word(text) && !added_ids.contains(id);
        let mut words: Vec<u32> = tokens.iter().filter(may_be_said).map(|(_, id)| *id).collect();
        words.sort_unstable();
        if words.is_empty() {
            words = (0..=last).collect();
        }
        let (vocabulary_size, context_tokens) = (last as usize + 1, context_tokens as usize);
        let mut eos_token_ids = ids_of(&config["eos_token_id"]);
        eos_token_ids.retain(|id| *id <= last);
        Ok(Self { vocabulary_size, words, context_tokens, eos_token_ids })
    }
}

/// `tokenizer.json` and `config.json`.
fn of_directory(tokenizer: &Path, config: &Path) -> Result<[Value; 2], LoadError> {
    let text = std::fs::read_to_string(tokenizer).map_err(|source| LoadError::Unreadable {
        path: tokenizer.into(),
        source,
        advice: "a mock engine needs MODEL for its tokenizer.json",
    })?;
    let config = match read_optional(config)? {
        Some(text) => parse_json(config, &text)?,
        None => Value::Null,
    };
    Ok([parse_json(tokenizer, &text)?, config])
}

/// The same of a file.
fn of_gguf(path: &Path) -> Result<[Value; 2], LoadError> {
    let file = gguf::map(path)?;
    let gguf = Gguf::parse(&file, path)?;
    let tokenizer = gguf::tokenizer::tokenizer_json(&gguf)?;
    let architecture = gguf.text("general.architecture")?.unwrap_or_default();
    let config = json!({
        "max_position_embeddings": gguf.unsigned(&format!("{architecture}.context_length"))?,
        "eos_token_id": gguf::tokenizer::end_token_ids(&gguf)?,
    });
    Ok([parse_json(path, &tokenizer)?, config])
}

/// The vocabulary as the kinds of tokenizers write it: an object of ids, or a list with scores.
fn tokens_of(vocabulary: &Value) -> Vec<(String, u32)> {
    if let Some(ids) = vocabulary.as_object() {
        let token = |(text, value): (&String, &Value)| Some((text.clone(), id(value.as_u64()?)));
        return ids.iter().filter_map(token).collect();
    }
    let entries = vocabulary.as_array().into_iter().flatten().zip(0..);
    entries.filter_map(|(entry, id)| Some((entry[0].as_str()?.to_string(), id))).collect()
}

/// One id, or a list of them.
fn ids_of(value: &Value) -> Vec<u32> {
    let several = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    several.iter().filter_map(Value::as_u64).map(id).collect()
}

fn id(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX - 1)
}

/// Letters only, after a space as byte-level BPE or SentencePiece write it.
fn is_word(text: &str) -> bool {
    let letters = text.strip_prefix(['Ġ', '▁']).unwrap_or(text);
    !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tokenizer: &str, expected: Result<(usize, &[u32]), &str>) {
        let name = format!("stator-mock-{}-{:?}", std::process::id(), std::thread::current().id());
        let directory = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("tokenizer.json"), tokenizer).unwrap();
        let loaded = MockVocabulary::load(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        match (loaded, expected) {
            (Ok(loaded), Ok((size, words))) => {
                assert_eq!((loaded.vocabulary_size, &loaded.words[..]), (size, words));
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (loaded, expected) => panic!("{loaded:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn words_are_found_in_every_kind_of_vocabulary() {
        let added = r#""added_tokens": [{"id": 4, "content": "end"}]"#;
        let bpe = format!(r#"{{"model": {{"vocab": {{"a": 0, "Ġb": 3, "é": 2}}}}, {added}}}"#);
        check(&bpe, Ok((5, &[0, 3])));
        check(r#"{"model": {"vocab": [["<s>", 0.0], ["▁of", -1.0]]}}"#, Ok((2, &[1])));
        check(r#"{"model": {"vocab": {"1": 0, "2": 1}}}"#, Ok((2, &[0, 1])));
        check(r#"{"model": {}}"#, Err("has no vocabulary"));
        check("{", Err("not usable"));
        check(r#"{"model": {"vocab": {"a": 99999999999}}}"#, Err("a token with the id"));
    }
}
