//! Names for KV blocks: a chained hash over token ids.
//!
//! A block's hash covers its tokens and, through its parent's hash, every token before it, so
//! that equal hashes mean equal prefixes. Keyed BLAKE3 cut to 128 bits: a collision would hand
//! one user the KV cache of another, so a fast non-cryptographic hash will not do.

const DOMAIN: &str = "stator.v1 kv block hash";

/// The name of one full KV block and of all that precedes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 16]);

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Hashes token blocks under one salt: the same tokens under another model, numerics id or cache
/// salt have other names.
#[derive(Clone)]
pub struct BlockHasher {
    key: [u8; 32],
    root: BlockHash,
    block_size: usize,
}

impl BlockHasher {
    /// `numerics_id` covers the model's weights and arithmetic; `cache_salt` is the caller's own.
    pub fn new(numerics_id: &str, cache_salt: &str, block_size: usize) -> Self {
        assert!(block_size > 0, "block_size comes from a checked configuration");
        let key = blake3::derive_key(DOMAIN, &[]);
        let mut root = blake3::Hasher::new_keyed(&key);
        for part in [numerics_id, cache_salt] {
            // Lengths keep ("ab", "c") apart from ("a", "bc").
            root.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self { key, root: truncate(root.finalize()), block_size }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The parent of a prompt's first block.
    pub fn root(&self) -> BlockHash {
        self.root
    }

    /// The hash of one full block that follows `parent`.
    pub fn block(&self, parent: BlockHash, tokens: &[u32]) -> BlockHash {
        debug_assert_eq!(tokens.len(), self.block_size, "only full blocks have names");
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&parent.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        truncate(hasher.finalize())
    }

    /// The hashes of all full blocks of `tokens`, in order.
    pub fn blocks(&self, tokens: &[u32]) -> Vec<BlockHash> {
        let mut parent = self.root;
        let full_blocks = tokens.chunks_exact(self.block_size);
        full_blocks
            .map(|block| {
                parent = self.block(parent, block);
                parent
            })
            .collect()
    }
}

fn truncate(hash: blake3::Hash) -> BlockHash {
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    BlockHash(short)
}

/// The wire form of a list of hashes: 16 bytes each, one after the other.
pub fn hashes_to_bytes(hashes: &[BlockHash]) -> bytes::Bytes {
    hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>().into()
}

/// Reads the wire form; a trailing partial hash is left out.
pub fn hashes_from_bytes(bytes: &[u8]) -> impl Iterator<Item = BlockHash> + '_ {
    bytes.as_chunks::<16>().0.iter().map(|chunk| BlockHash(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_have_equal_hashes_and_nothing_else_has() {
        let hasher = BlockHasher::new("weights-1", "", 4);
        let a = hasher.blocks(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let b = hasher.blocks(&[1, 2, 3, 4, 5, 6, 7, 9]);
        assert_eq!(a.len(), 2, "the partial block has no name");
        assert_eq!(a[0], b[0]);
        assert_ne!(a[1], b[1]);
        let shifted = hasher.blocks(&[5, 6, 7, 8]);
        assert_ne!(a[1], shifted[0], "a block's name covers what precedes it");
    }

    #[test]
    fn salts_separate() {
        let tokens = [1, 2, 3, 4];
        let hash = |numerics, salt| BlockHasher::new(numerics, salt, 4).blocks(&tokens)[0];
        assert_ne!(hash("a", ""), hash("b", ""));
        assert_ne!(hash("a", ""), hash("a", "tenant"));
        assert_ne!(hash("ab", "c"), hash("a", "bc"));
    }

    #[test]
    fn wire_form_round_trips() {
        let hashes = BlockHasher::new("a", "", 2).blocks(&[1, 2, 3, 4, 5, 6]);
        let bytes = hashes_to_bytes(&hashes);
        assert_eq!(bytes.len(), 48);
        assert_eq!(hashes_from_bytes(&bytes).collect::<Vec<_>>(), hashes);
    }
}
