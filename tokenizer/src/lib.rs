//! The tokenizer of a model, and the true bytes behind each of its tokens.

#[cfg(any(test, feature = "test-support"))]
pub mod test_support;

use std::collections::HashMap;

use serde_json::Value;

/// Why a tokenizer cannot be loaded or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Its token ids would be out of the model's vocabulary.
    #[error(
        "it has {tokens} tokens, and config.json {vocabulary_size_max}: they belong to different models"
    )]
    OtherModel { tokens: usize, vocabulary_size_max: usize },
    #[error("the tokenizer file cannot be used")]
    Load(#[source] tokenizers::Error),
    #[error("the tokenizer's decoder {0} is not supported")]
    UnsupportedDecoder(String),
    #[error("the text cannot be tokenized")]
    Encode(#[source] tokenizers::Error),
    #[error("the tokens cannot be turned into text")]
    Decode(#[source] tokenizers::Error),
}

/// A `tokenizer.json`. Truncation and padding, which some files switch on, are off.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after the other; token `id` ends at `ends[id]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Kept because every request asks for it, and the vocabulary is long.
    token_bytes_max: usize,
    special: Vec<bool>,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json` for a model with so many tokens.
    pub fn from_bytes(
        tokenizer_json: &[u8],
        vocabulary_size_max: usize,
    ) -> Result<Tokenizer, TokenizerError> {
        let mut inner =
            tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(TokenizerError::Load)?;
        inner.with_truncation(None).map_err(TokenizerError::Load)?;
        inner.with_padding(None);
        let spelling = Spelling::of(&inner)?;
        let added = inner.get_added_tokens_decoder();
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if vocab_size > vocabulary_size_max {
            return Err(TokenizerError::OtherModel { tokens: vocab_size, vocabulary_size_max });
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(vocab_size));
        for id in 0..vocab_size as u32 {
            match added.get(&id) {
                Some(token) => bytes.extend_from_slice(token.content.as_bytes()),
                None => spelling.append(&inner.id_to_token(id).unwrap_or_default(), &mut bytes),
            }
            ends.push(bytes.len());
        }
        let mut special = vec![false; vocab_size];
        for (id, _) in added.iter().filter(|(_, token)| token.special) {
            special[*id as usize] = true;
        }
        let starts = std::iter::once(&0).chain(&ends);
        let token_bytes_max = starts.zip(&ends).map(|(start, end)| end - start).max().unwrap_or(0);
        Ok(Tokenizer { inner, bytes, ends, token_bytes_max, special })
    }

    /// `add_special_tokens` is for text that did not come out of a chat template, which writes them
    /// itself.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        Ok(encoding.map_err(TokenizerError::Encode)?.get_ids().to_vec())
    }

    /// The text of whole token ids, special tokens included, as the tokenizer itself puts it: some
    /// drop the space before the first word. What is generated goes by [`Tokenizer::token_bytes`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(TokenizerError::Decode)
    }

    /// How the vocabulary spells a token; for people, as `Ġthe` and `▁the` are no text.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many ids there are, the gaps counted in.
    pub fn tokens(&self) -> usize {
        self.ends.len()
    }

    /// The tokens that are spelled so, special ones among them.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Bytes of the longest token.
    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    /// What a token stands for, which may be a part of a character. Special tokens are their text,
    /// unknown ids are empty.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    /// Whether a token is markup that generated text does not show.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// How the vocabulary spells bytes.
///
/// The decoder of the file works on whole texts and, in the SentencePiece family, also drops the
/// space before the first word. What is generated continues a prompt, so that space is kept here.
enum Spelling {
    /// Each byte is one printable character (GPT-2).
    ByteLevel(HashMap<char, u8>),
    /// Text with a mark for spaces, and `<0xNN>` for single bytes (SentencePiece).
    Pieces { space: Option<String>, byte_fallback: bool },
}

impl Spelling {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Spelling, TokenizerError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| TokenizerError::Load(error.into()))?;
        let (mut space, mut byte_fallback) = (None, false);
        let steps = match &decoder["decoders"] {
            Value::Array(steps) => steps.as_slice(),
            _ if decoder.is_null() => &[],
            _ => std::slice::from_ref(&decoder),
        };
        for step in steps {
            match step["type"].as_str().unwrap_or_default() {
                "ByteLevel" => return Ok(Spelling::ByteLevel(byte_level_alphabet())),
                "Metaspace" => space = step["replacement"].as_str().map(str::to_owned),
                "Replace" if step["content"] == " " => {
                    space = step["pattern"]["String"].as_str().map(str::to_owned);
                }
                "ByteFallback" => byte_fallback = true,
                "Fuse" | "Strip" => {}
                other => return Err(TokenizerError::UnsupportedDecoder(other.to_owned())),
            }
        }
        Ok(Spelling::Pieces { space, byte_fallback })
    }

    fn append(&self, piece: &str, bytes: &mut Vec<u8>) {
        match self {
            Spelling::ByteLevel(alphabet) => {
                let start = bytes.len();
                for character in piece.chars() {
                    let Some(&byte) = alphabet.get(&character) else {
                        // Not an encoded token at all; it stands for itself.
                        bytes.truncate(start);
                        bytes.extend_from_slice(piece.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Spelling::Pieces { space, byte_fallback } => {
                if let Some(byte) = fallback_byte(piece).filter(|_| *byte_fallback) {
                    bytes.push(byte);
                } else if let Some(space) = space {
                    bytes.extend_from_slice(piece.replace(space.as_str(), " ").as_bytes());
                } else {
                    bytes.extend_from_slice(piece.as_bytes());
                }
            }
        }
    }
}

/// The byte of a piece such as `<0x0A>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's table: printable Latin-1 stands for itself, the other bytes are counted up from U+0100.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = ('\u{100}'..).zip((0..=u8::MAX).filter(|&byte| !printable(byte)));
    let own = (0..=u8::MAX).filter(|&byte| printable(byte)).map(|byte| (char::from(byte), byte));
    own.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::test_support::{byte_level_tokenizer, from_json};

    fn sentencepiece_tokenizer() -> Tokenizer {
        from_json(&json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
            "model": { "type": "BPE", "byte_fallback": true, "merges": [],
                "vocab": { "<0x0A>": 0, "<0xF0>": 1, "▁a▁": 2, "é": 3 } },
        }))
    }

    #[test]
    fn tokens_are_the_bytes_of_the_text() {
        let tokenizer = byte_level_tokenizer();
        for text in ["ab ab", " a é😀x\n", "<think é>ab", "日本語😀😀x", "\u{7f}\u{ad}"]
        {
            let ids = tokenizer.encode(text, false).unwrap();
            let bytes: Vec<u8> =
                ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), text);
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn knows_special_tokens_and_bounds() {
        let tokenizer = byte_level_tokenizer();
        let end = tokenizer.inner.token_to_id("<|end|>").unwrap();
        assert!(tokenizer.is_special(end));
        assert!(!tokenizer.is_special(end + 1));
        assert_eq!(tokenizer.token_bytes(end), b"<|end|>");
        assert_eq!(tokenizer.token_bytes(end + 1), "<think é>".as_bytes());
        assert_eq!(tokenizer.token_bytes(end + 2), b"");
        assert!(!tokenizer.is_special(u32::MAX));
    }

    #[test]
    fn reads_sentencepiece_spelling() {
        let tokenizer = sentencepiece_tokenizer();
        for (id, bytes) in [(0, &b"\n"[..]), (1, &[0xF0]), (2, b" a "), (3, "é".as_bytes())] {
            assert_eq!(tokenizer.token_bytes(id), bytes);
        }
        assert_eq!(tokenizer.decode(&[2, 3]).unwrap(), "a é");
        assert_eq!(tokenizer.spelling(2).as_deref(), Some("▁a▁"));
        assert_eq!(tokenizer.spelling(4), None);
    }

    #[test]
    fn refuses_files_it_cannot_use() {
        assert!(matches!(Tokenizer::from_bytes(b"{}", 1 << 20), Err(TokenizerError::Load(_))));
        let word_piece = json!({
            "version": "1.0", "added_tokens": [],
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "model": { "type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 9, "vocab": { "?": 0 } },
        });
        assert!(matches!(
            Tokenizer::from_bytes(word_piece.to_string().as_bytes(), 1 << 20),
            Err(TokenizerError::UnsupportedDecoder(name)) if name == "WordPiece"
        ));
    }
}
