//! Encodes texts for files of byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek, gpt-oss), with exactly
//! the ids that the `tokenizers` crate gives.
//!
//! That crate keeps for every piece of a text where it came from, in several copies, which is most
//! of its time. Here pieces are slices of the text, and most are one token, found by one look-up.
//! What a file asks for beyond the family's features, and what that crate does with texts that
//! exceed the limits of its regex engine, is left to it.

mod added;
mod merge;
mod pieces;
mod words;

use std::collections::HashMap;

use tokenizers::models::ModelWrapper;
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Token};

use crate::token_bytes::TokenBytes;
use added::AddedTokens;
use merge::Merges;
use pieces::PreTokenizer;
use words::Words;

/// Why this encoder is not for a file: an end of the sentence "the file …".
type Unsupported = &'static str;

pub(crate) struct FastEncoder {
    added: AddedTokens,
    pre_tokenizer: PreTokenizer,
    words: Words,
    merges: Merges,
    /// What the file puts around a text that is encoded with special tokens.
    before: Vec<u32>,
    after: Vec<u32>,
}

impl FastEncoder {
    /// `vocab` has the added tokens in it; `tokens` are the bytes of all.
    pub(crate) fn new(
        tokenizer_json: &[u8],
        tokenizer: &tokenizers::Tokenizer,
        vocab: &HashMap<String, u32>,
        tokens: &TokenBytes,
    ) -> Result<FastEncoder, Unsupported> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else {
            return Err("has no BPE model");
        };
        if model.dropout.is_some_and(|probability| probability > 0.0) {
            return Err("has dropout");
        }
        if model.continuing_subword_prefix.is_some() || model.end_of_word_suffix.is_some() {
            return Err("marks the beginning or the end of words");
        }
        let pre_tokenizer = PreTokenizer::of(tokenizer)?;
        let added = AddedTokens::of(tokenizer)?;
        let (before, after) = around_texts(tokenizer.get_post_processor())?;
        let merges = Merges::read(tokenizer_json, model)?;
        let words = Words::new(tokenizer, model, vocab, tokens, &merges)?;
        Ok(FastEncoder { added, pre_tokenizer, words, merges, before, after })
    }

    /// `None` for the few texts that the `tokenizers` crate has to encode.
    pub(crate) fn encode(
        &self,
        tokens: &TokenBytes,
        text: &str,
        add_special_tokens: bool,
    ) -> Option<Vec<u32>> {
        // Positions in a piece are 32 bits.
        if u32::try_from(text.len()).is_err() {
            return None;
        }
        let mut scratch = merge::Scratch::default();
        let mut ids = Vec::with_capacity(text.len() / 4 + self.before.len() + self.after.len() + 1);
        if add_special_tokens {
            ids.extend_from_slice(&self.before);
        }
        self.added.split(text, &mut ids, |text, ids| {
            self.pre_tokenizer.split(text, &mut |piece| {
                let piece = piece.as_bytes();
                match self.words.get(tokens, piece) {
                    Some(id) => ids.push(id),
                    None => self.merges.encode(piece, &mut scratch, ids),
                }
            })
        })?;
        if add_special_tokens {
            ids.extend_from_slice(&self.after);
        }
        Some(ids)
    }
}

/// The ids before and after a text. Asked of the post-processor itself, with an id that no file has
/// in the place of the text, because there are several ways to write the same.
fn around_texts(
    processor: Option<&PostProcessorWrapper>,
) -> Result<(Vec<u32>, Vec<u32>), Unsupported> {
    const TEXT: u32 = u32::MAX;
    const UNSUPPORTED: Unsupported = "has a post-processor that does more than enclose a text";
    let Some(processor) = processor else {
        return Ok((Vec::new(), Vec::new()));
    };
    if !only_encloses(processor) {
        return Err(UNSUPPORTED);
    }
    let process = |add_special_tokens| {
        let text = Encoding::from_tokens(vec![Token::new(TEXT, "x".to_owned(), (0, 1))], 0);
        let encoding = processor.process(text, None, add_special_tokens);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|_| UNSUPPORTED)
    };
    if process(false)? != [TEXT] {
        return Err(UNSUPPORTED);
    }
    let ids = process(true)?;
    match ids.split(|&id| id == TEXT).collect::<Vec<_>>()[..] {
        [before, after] => Ok((before.to_vec(), after.to_vec())),
        _ => Err(UNSUPPORTED),
    }
}

fn only_encloses(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::ByteLevel(_) | PostProcessorWrapper::Template(_) => true,
        PostProcessorWrapper::Sequence(steps) => steps.as_ref().iter().all(only_encloses),
        _ => false,
    }
}
