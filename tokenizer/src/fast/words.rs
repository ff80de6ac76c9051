//! Pieces that are one token as a whole, which most are.

use std::collections::HashMap;

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use super::Unsupported;
use super::merge::{Merges, Scratch};
use crate::spelling::ByteAlphabet;
use crate::token_bytes::TokenBytes;

/// The tokens that a piece of the same bytes becomes, found by their bytes.
pub(super) struct Words {
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest_bytes: usize,
}

impl Words {
    pub(super) fn new(
        tokenizer: &tokenizers::Tokenizer,
        model: &BPE,
        vocab: &HashMap<String, u32>,
        tokens: &TokenBytes,
        merges: &Merges,
    ) -> Result<Words, Unsupported> {
        let mut words = Words {
            ids: HashTable::with_capacity(vocab.len()),
            hasher: DefaultHashBuilder::default(),
            longest_bytes: 0,
        };
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let (alphabet, mut bytes) = (ByteAlphabet::new(), Vec::new());
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        for (token, &id) in vocab {
            bytes.clear();
            let spelled = token.chars().map(|character| alphabet.byte(character));
            bytes.extend(spelled.clone().map_while(|byte| byte));
            // Other characters never come out of bytes, and some added tokens are not the model's.
            let of_model = !added.contains_key(&id) || model.token_to_id(token) == Some(id);
            if spelled.clone().any(|byte| byte.is_none()) || !of_model {
                continue;
            }
            if tokens.get(id) != bytes {
                return Err("gives one id to two tokens");
            }
            if !model.ignore_merges {
                ids.clear();
                merges.encode(&bytes, &mut scratch, &mut ids);
                // Tokens that the merges do not lead to are in some files.
                if ids != [id] {
                    continue;
                }
            }
            words.insert(tokens, id);
        }
        Ok(words)
    }

    fn insert(&mut self, tokens: &TokenBytes, id: u32) {
        let hash = |id: u32| self.hasher.hash_one(tokens.get(id));
        self.ids.insert_unique(hash(id), id, |&id| hash(id));
        self.longest_bytes = self.longest_bytes.max(tokens.get(id).len());
    }

    /// `tokens` are those that this was made with.
    pub(super) fn get(&self, tokens: &TokenBytes, piece: &[u8]) -> Option<u32> {
        if piece.len() > self.longest_bytes {
            return None;
        }
        self.ids.find(self.hasher.hash_one(piece), |&id| tokens.get(id) == piece).copied()
    }
}
