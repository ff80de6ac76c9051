//! A tokenizer as llguidance wants to see it.

use std::sync::Arc;

use tokenizer::Tokenizer;
use toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// Of a text that is forced, no more than this is looked at in one step: far more than a step can
/// compute.
const FORCED_BYTES_MAX: usize = 1024;

/// Texts that are tokenized once to learn whether a tokenizer spells what it is given.
const PROBES: [&str; 3] = ["{\"a\": [1, true]}", " b", "c"];

/// The vocabulary as a tree, and the tokenizer for text that a grammar forces.
pub struct TokenEnvironment {
    tokenizer: Arc<Tokenizer>,
    tree: TokTrie,
    is_canonical: bool,
}

impl TokenEnvironment {
    /// For a model whose token ids are below `vocabulary_size`, and end texts by `eos_token_ids`.
    pub fn new(tokenizer: Arc<Tokenizer>, vocabulary_size: usize, eos_token_ids: &[u32]) -> Self {
        let spelled = |id: u32| match tokenizer.is_special(id) {
            // Text that merely looks like it is another thing.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.token_bytes(id)].concat(),
            false => tokenizer.token_bytes(id).to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..vocabulary_size as u32).map(spelled).collect();
        let in_vocabulary = |id: &u32| (*id as usize) < vocabulary_size;
        let mut ends: Vec<u32> = eos_token_ids.iter().copied().filter(in_vocabulary).collect();
        if ends.is_empty() {
            ends.push(0);
        }
        let info = TokRxInfo::new(vocabulary_size as u32, ends[0]);
        let tree = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let mut environment = Self { tokenizer, tree, is_canonical: true };
        let spells = |probe: &str| environment.tokenize_exactly(probe).is_some();
        environment.is_canonical = PROBES.into_iter().all(spells);
        environment
    }

    /// Nothing where the tokenizer changes the text, or sees a special token in it.
    fn tokenize_exactly(&self, text: &str) -> Option<Vec<TokenId>> {
        let tokens = self.tokenizer.encode(text, false).ok()?;
        let spelled = tokens.iter().flat_map(|id| self.tokenizer.token_bytes(*id)).copied();
        let is_exact = !tokens.iter().any(|id| self.tokenizer.is_special(*id));
        (is_exact && spelled.eq(text.bytes())).then_some(tokens)
    }
}

impl TokenizerEnv for TokenEnvironment {
    fn tok_trie(&self) -> &TokTrie {
        &self.tree
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let bytes = &bytes[..bytes.len().min(FORCED_BYTES_MAX)];
        let whole = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            // A character that was cut in the middle.
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        let exactly = self.tokenize_exactly(whole).filter(|tokens| !tokens.is_empty());
        exactly.unwrap_or_else(|| self.tree.greedy_tokenize(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.is_canonical
    }
}
