//! The tokens of a file: texts, kinds, and those with a name.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::{Gguf, GgufError};

/// Tokens of one file at most; real ones have some 100,000.
const TOKENS_MAX: usize = 1 << 24;

/// The tokens, by id; none where the file only carries a `tokenizer.json`.
#[derive(Default)]
pub(super) struct Vocabulary<'a> {
    pub texts: Vec<&'a str>,
    kinds: Vec<Kind>,
}

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A part of texts.
    Normal,
    /// What stands for what no token spells.
    Unknown,
    /// Markup that no text is.
    Control,
    /// A text that is always one token.
    UserDefined,
    /// A gap.
    Unused,
    /// One byte.
    Byte,
}

impl<'a> Vocabulary<'a> {
    pub fn read(gguf: &Gguf<'a>) -> Result<Self, GgufError> {
        let texts = gguf.texts("tokenizer.ggml.tokens")?;
        let texts = gguf.required("tokenizer.ggml.tokens", texts)?;
        if texts.is_empty() || texts.len() > TOKENS_MAX {
            return Err(gguf.corrupt(format!("it has {} tokens", texts.len())));
        }
        let kinds = match gguf.unsigneds("tokenizer.ggml.token_type")? {
            None => vec![Kind::Normal; texts.len()],
            Some(numbers) if numbers.len() == texts.len() => {
                numbers.into_iter().map(Kind::of).collect()
            }
            Some(numbers) => {
                let (types, tokens) = (numbers.len(), texts.len());
                return Err(gguf.corrupt(format!("it has {types} token types for {tokens} tokens")));
            }
        };
        Ok(Self { texts, kinds })
    }

    /// The same; no tokens where the file has none.
    pub fn read_if_any(gguf: &Gguf<'a>) -> Result<Self, GgufError> {
        match gguf.metadata().get("tokenizer.ggml.tokens") {
            Some(_) => Self::read(gguf),
            None => Ok(Self::default()),
        }
    }

    /// Ids, texts and kinds, without gaps.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        let tokens = (0..).zip(&self.texts).zip(&self.kinds);
        let tokens = tokens.map(|((id, text), kind)| (id, *text, *kind));
        tokens.filter(|(_, _, kind)| *kind != Kind::Unused)
    }

    /// Ids and texts of control tokens.
    pub fn control(&self) -> impl Iterator<Item = (u32, &'a str)> {
        let control = self.tokens().filter(|(_, _, kind)| *kind == Kind::Control);
        control.map(|(id, text, _)| (id, text))
    }

    /// Ids by text. Errors: two tokens have one text.
    pub fn ids(&self, gguf: &Gguf<'_>) -> Result<HashMap<&'a str, u32>, GgufError> {
        let mut ids = HashMap::with_capacity(self.texts.len());
        for (id, text, _) in self.tokens() {
            if let Some(other) = ids.insert(text, id) {
                return Err(gguf.corrupt(format!("its tokens {other} and {id} are both {text:?}")));
            }
        }
        Ok(ids)
    }

    /// The id under `tokenizer.ggml.<name>_token_id`, if there is one.
    pub fn named(&self, gguf: &Gguf<'_>, name: &str) -> Result<Option<u32>, GgufError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = gguf.unsigned(&key)? else { return Ok(None) };
        let exists = |id: &u32| self.texts.is_empty() || (*id as usize) < self.texts.len();
        match u32::try_from(id).ok().filter(exists) {
            Some(id) => Ok(Some(id)),
            None => {
                let tokens = self.texts.len();
                Err(gguf.corrupt(format!("metadata {key} is {id}, and there are {tokens} tokens")))
            }
        }
    }

    /// The vocabulary of a `tokenizer.json`. Added tokens are in it too: so they have their ids
    /// wherever those lie.
    pub fn json(&self) -> Value {
        Value::Object(self.tokens().map(|(id, text, _)| (text.to_string(), id.into())).collect())
    }

    /// The tokens that are cut out of a text before anything else looks at it.
    pub fn added_tokens(&self) -> Value {
        let added = self.tokens().filter_map(|(id, text, kind)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            let mut token = Map::new();
            token.insert("id".into(), id.into());
            token.insert("content".into(), text.into());
            for property in ["single_word", "lstrip", "rstrip", "normalized"] {
                token.insert(property.into(), false.into());
            }
            token.insert("special".into(), special.into());
            Some(Value::Object(token)).filter(|_| !text.is_empty())
        });
        json!(added.collect::<Vec<_>>())
    }
}

impl Kind {
    fn of(number: u64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}
