//! The tokenizer of a model, and the true bytes behind each of its tokens.

#[cfg(any(test, feature = "test-support"))]
pub mod test_support;

mod fast;
mod spelling;
mod token_bytes;

use fast::FastEncoder;
use spelling::Spelling;
use token_bytes::TokenBytes;

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
    /// Or why there is none for this file.
    fast: Result<FastEncoder, &'static str>,
    tokens: TokenBytes,
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
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size > vocabulary_size_max {
            return Err(TokenizerError::OtherModel { tokens: vocab_size, vocabulary_size_max });
        }
        let mut tokens = TokenBytes::default();
        for id in 0..vocab_size as u32 {
            tokens.push(|bytes| match added.get(&id) {
                Some(token) => bytes.extend_from_slice(token.content.as_bytes()),
                None => spelling.append(&inner.id_to_token(id).unwrap_or_default(), bytes),
            });
        }
        tokens.shrink();
        let mut special = vec![false; vocab_size];
        for (id, _) in added.iter().filter(|(_, token)| token.special) {
            special[*id as usize] = true;
        }
        let fast = FastEncoder::new(tokenizer_json, &inner, &vocab, &tokens);
        Ok(Tokenizer { inner, fast, tokens, special })
    }

    /// `add_special_tokens` is for text that did not come out of a chat template, which writes them
    /// itself.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let fast = self.fast.as_ref().ok();
        if let Some(ids) = fast.and_then(|it| it.encode(&self.tokens, text, add_special_tokens)) {
            return Ok(ids);
        }
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        Ok(encoding.map_err(TokenizerError::Encode)?.get_ids().to_vec())
    }

    /// Why texts are encoded by the `tokenizers` crate, which takes about ten times as long: what
    /// this file asks for that the encoder of this crate does not do. `None` where that one is used.
    pub fn slow_because(&self) -> Option<&'static str> {
        self.fast.as_ref().err().copied()
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
        self.tokens.len()
    }

    /// The tokens that are spelled so, special ones among them.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Bytes of the longest token.
    pub fn token_bytes_max(&self) -> usize {
        self.tokens.longest_bytes()
    }

    /// What a token stands for, which may be a part of a character. Special tokens are their text,
    /// unknown ids are empty.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id)
    }

    /// Whether a token is markup that generated text does not show.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
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
