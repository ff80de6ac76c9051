//! Added tokens, which are cut out of a text before anything else looks at it.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::Unsupported;

/// The added tokens of a file, and the normal form that it brings the text between them to.
pub(super) struct AddedTokens {
    /// Found in the text as it is.
    verbatim: Matcher,
    /// Found in the normal form of what is left.
    normalized: Matcher,
    normalizer: Normalizer,
}

#[derive(Clone, Copy, PartialEq)]
enum Normalizer {
    None,
    Nfc,
}

/// Tokens that are looked for together; of those that begin at the same place, the longest.
struct Matcher {
    /// None where there are no tokens.
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl AddedTokens {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<AddedTokens, Unsupported> {
        let normalizer = serde_json::to_value(tokenizer.get_normalizer());
        let normalizer = Normalizer::of(&normalizer.unwrap_or_default())?;
        let (mut verbatim, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.single_word || token.lstrip || token.rstrip {
                return Err("has added tokens that depend on the text around them");
            }
            if token.normalized {
                normalized.push((normalizer.apply(&token.content).into_owned(), id));
            } else {
                verbatim.push((token.content, id));
            }
        }
        Ok(AddedTokens {
            verbatim: Matcher::new(verbatim)?,
            normalized: Matcher::new(normalized)?,
            normalizer,
        })
    }

    /// Appends the ids of added tokens, and has `encode` append those of the text between them.
    /// `None` as soon as `encode` says so.
    pub(super) fn split(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        mut encode: impl FnMut(&str, &mut Vec<u32>) -> Option<()>,
    ) -> Option<()> {
        self.verbatim.split(text, ids, &mut |text, ids| {
            self.normalized.split(&self.normalizer.apply(text), ids, &mut encode)
        })
    }
}

impl Matcher {
    fn new(tokens: Vec<(String, u32)>) -> Result<Matcher, Unsupported> {
        let (contents, ids): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        if contents.iter().any(String::is_empty) {
            return Err("has an added token without text");
        }
        if ids.is_empty() {
            return Ok(Matcher { automaton: None, ids });
        }
        let automaton =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents);
        Ok(Matcher { automaton: Some(automaton.map_err(|_| "has too many added tokens")?), ids })
    }

    fn split(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        between: &mut impl FnMut(&str, &mut Vec<u32>) -> Option<()>,
    ) -> Option<()> {
        let mut start = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            between(&text[start..found.start()], ids)?;
            ids.push(self.ids[found.pattern()]);
            start = found.end();
        }
        between(&text[start..], ids)
    }
}

impl Normalizer {
    fn of(normalizer: &Value) -> Result<Normalizer, Unsupported> {
        let steps = match &normalizer["normalizers"] {
            Value::Array(steps) => steps.as_slice(),
            _ if normalizer.is_null() => &[],
            _ => std::slice::from_ref(normalizer),
        };
        match steps {
            [] => Ok(Normalizer::None),
            [step] if step["type"] == "NFC" => Ok(Normalizer::Nfc),
            _ => Err("has a normalizer other than NFC"),
        }
    }

    /// By the tables that the `tokenizers` crate goes by; they are those of Unicode 9.
    fn apply(self, text: &str) -> Cow<'_, str> {
        let unchanged = self == Normalizer::None
            || text.is_ascii()
            || is_nfc_quick(text.chars()) == IsNormalized::Yes;
        if unchanged {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.nfc().map(|(character, _)| character).collect())
    }
}
