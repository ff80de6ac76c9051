//! The grammars used last, by their text.

use std::collections::HashMap;

use crate::compiler::Grammar;

/// At most so many; the one used longest ago goes for a new one.
pub struct Cache {
    grammars: HashMap<blake3::Hash, Entry>,
    grammars_max: usize,
    uses: u64,
}

struct Entry {
    grammar: Grammar,
    last_use: u64,
}

impl Cache {
    /// Empty.
    pub fn new(grammars_max: usize) -> Self {
        Self { grammars: HashMap::new(), grammars_max, uses: 0 }
    }

    /// The grammar of this text, which is now the latest.
    pub fn get(&mut self, text: &str) -> Option<Grammar> {
        self.uses += 1;
        let entry = self.grammars.get_mut(&blake3::hash(text.as_bytes()))?;
        entry.last_use = self.uses;
        Some(entry.grammar.clone())
    }

    /// Another one.
    pub fn insert(&mut self, text: &str, grammar: Grammar) {
        self.uses += 1;
        self.grammars.insert(blake3::hash(text.as_bytes()), Entry { grammar, last_use: self.uses });
        if self.grammars.len() > self.grammars_max {
            let oldest = self.grammars.iter().min_by_key(|(_, entry)| entry.last_use);
            let oldest = oldest.map(|(hash, _)| *hash);
            oldest.and_then(|hash| self.grammars.remove(&hash));
        }
    }
}
