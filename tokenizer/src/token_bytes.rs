//! The bytes that each token stands for.

/// The bytes of all tokens, one after the other; token `id` ends at `ends[id]`.
#[derive(Default)]
pub(crate) struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    longest_bytes: usize,
}

impl TokenBytes {
    /// Adds the token of the next id; `write` appends its bytes. They may be 4 GiB in all.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        self.longest_bytes = self.longest_bytes.max(self.bytes.len() - start);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Gives back memory that was kept for more tokens.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// How many ids there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    /// Empty for unknown ids.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}
