//! What kernels are compiled for: the numbers of a model and of a card that are constants to them.

/// How a number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 4 bytes.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Its name in the sources.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// Constants of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelShape {
    /// Elements of a head.
    pub head_dim: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Tokens per KV block.
    pub block_size: usize,
    /// What KV blocks hold.
    pub kv: Dtype,
    /// What matrix products take and give.
    pub activations: Dtype,
    /// What norms, embeddings, biases and unquantised matrices are.
    pub weights: Dtype,
    /// Whether elements 2i and 2i + 1 of a head rotate together, instead of i and i + head_dim / 2.
    pub neighbours: bool,
    /// Shared memory that a block of threads of the card may have, in bytes, when it asks for it
    /// (`CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`).
    pub shared_bytes_max: usize,
}

/// A model that the kernels cannot compute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedShape {
    /// Vectors of 16 bytes would not fit.
    #[error(
        "the CUDA kernels need heads of a multiple of 8 up to 256 elements, not {0}: use the CPU"
    )]
    HeadDim(usize),
    /// Groups are what a tile must have room for.
    #[error(
        "the CUDA kernels need 1 to 16 query heads for each KV head, not {heads} for {kv_heads}: \
         use the CPU"
    )]
    Group {
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// Four positions are read at once.
    #[error(
        "the CUDA kernels need a block size that is a multiple of 4, not {0}: use --block-size 16"
    )]
    BlockSize(usize),
    /// Not even the smallest tile fits.
    #[error(
        "the card gives a block of threads {available} bytes of shared memory, and attention needs \
         {needed}: use the CPU"
    )]
    SharedMemory {
        /// What a block of threads may have.
        available: usize,
        /// What the smallest tile needs.
        needed: usize,
    },
}

impl KernelShape {
    /// Query heads of each KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Bytes of the keys (or the values) of one layer in one block, as `kv-transfer` lays them out.
    pub fn plane_bytes(&self) -> usize {
        self.kv_heads * self.block_size * self.head_dim * self.kv.bytes()
    }

    /// Whether the kernels can be compiled for this.
    pub fn check(&self) -> Result<(), UnsupportedShape> {
        if self.head_dim == 0 || self.head_dim > 256 || !self.head_dim.is_multiple_of(8) {
            return Err(UnsupportedShape::HeadDim(self.head_dim));
        }
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let is_grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        if !is_grouped || !(1..=16).contains(&(heads / kv_heads)) {
            return Err(UnsupportedShape::Group { heads, kv_heads });
        }
        if self.block_size == 0 || !self.block_size.is_multiple_of(4) {
            return Err(UnsupportedShape::BlockSize(self.block_size));
        }
        crate::attention::Sizes::check(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn llama_8b() -> KernelShape {
        KernelShape {
            head_dim: 128,
            heads: 32,
            kv_heads: 8,
            block_size: 16,
            kv: Dtype::Bf16,
            activations: Dtype::Bf16,
            weights: Dtype::Bf16,
            neighbours: false,
            shared_bytes_max: 227 << 10,
        }
    }

    #[test]
    fn what_the_kernels_cannot_compute_is_refused_in_a_sentence() {
        let shape = llama_8b();
        assert_eq!(shape.check(), Ok(()));
        let check = |shape: KernelShape, expected: &str| {
            let refusal = shape.check().expect_err("is refused").to_string();
            assert!(refusal.contains(expected), "{refusal}");
        };
        check(KernelShape { head_dim: 100, ..shape }, "not 100");
        check(KernelShape { head_dim: 264, ..shape }, "not 264");
        check(KernelShape { heads: 30, ..shape }, "not 30 for 8");
        check(KernelShape { heads: 136, ..shape }, "not 136 for 8");
        check(KernelShape { kv_heads: 0, ..shape }, "not 32 for 0");
        check(KernelShape { block_size: 6, ..shape }, "not 6");
        let wide = KernelShape { head_dim: 256, ..shape };
        check(KernelShape { shared_bytes_max: 48 << 10, ..wide }, "49152 bytes");
    }
}
