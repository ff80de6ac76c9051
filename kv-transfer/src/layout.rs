//! What the bytes of one KV block mean.

use protocol::v1;

/// The shape of a pool's blocks. A block holds, for each layer, the keys of `block_size` tokens as
/// `[kv_heads, head_dim, block_size]` and then the values as `[kv_heads, block_size, head_dim]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// KV computed under another id has other values.
    pub numerics_id: String,
    /// Tokens per block.
    pub block_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Key-value heads (grouped-query attention has fewer than query heads).
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Bytes per element.
    pub element_bytes: usize,
}

impl KvLayout {
    /// Bytes of the keys (or the values) of one layer in one block.
    pub fn plane_bytes(&self) -> usize {
        self.kv_heads * self.block_size * self.head_dim * self.element_bytes
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(&self) -> usize {
        2 * self.layers * self.plane_bytes()
    }

    /// Bytes of one block, unless they are none or too many to count. For layouts that were
    /// received.
    pub fn checked_block_bytes(&self) -> Option<usize> {
        let factors = [self.layers, self.kv_heads, self.block_size, self.head_dim];
        let elements = factors.iter().try_fold(2usize, |product, n| product.checked_mul(*n))?;
        elements.checked_mul(self.element_bytes).filter(|bytes| *bytes > 0)
    }

    /// Where the keys of `layer` begin in a block.
    pub fn keys_offset(&self, layer: usize) -> usize {
        2 * layer * self.plane_bytes()
    }

    /// Where the values of `layer` begin in a block.
    pub fn values_offset(&self, layer: usize) -> usize {
        self.keys_offset(layer) + self.plane_bytes()
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }
}

impl From<&KvLayout> for v1::KvLayout {
    fn from(layout: &KvLayout) -> Self {
        Self {
            numerics_id: layout.numerics_id.clone(),
            block_size: layout.block_size as u32,
            layers: layout.layers as u32,
            kv_heads: layout.kv_heads as u32,
            head_dim: layout.head_dim as u32,
            element_bytes: layout.element_bytes as u32,
        }
    }
}

impl From<v1::KvLayout> for KvLayout {
    fn from(layout: v1::KvLayout) -> Self {
        Self {
            numerics_id: layout.numerics_id,
            block_size: layout.block_size as usize,
            layers: layout.layers as usize,
            kv_heads: layout.kv_heads as usize,
            head_dim: layout.head_dim as usize,
            element_bytes: layout.element_bytes as usize,
        }
    }
}
