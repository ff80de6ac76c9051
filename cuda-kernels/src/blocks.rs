//! How KV blocks are copied from one pool to another by one launch.

use crate::launch::{Argument, Launch, LaunchError, along_yz, multiple_of};

const COPY_THREADS: usize = 256;
/// What a thread copies at once, and what a block's size is a multiple of.
const VECTOR_BYTES: usize = 16;
/// A thread copies about so many vectors.
const VECTORS_PER_THREAD: usize = 4;

/// Blocks of one launch.
pub const COPIED_BLOCKS_MAX: usize = 65_535;

/// Copies of blocks between pools that one GPU reaches. Fields that are addresses say what lies there.
#[derive(Clone, Copy, Debug)]
pub struct CopyBlocks {
    /// The pool that is written to; aligned to 16 bytes.
    pub to: u64,
    /// The pool that is read; aligned to 16 bytes.
    pub from: u64,
    /// u32 `[count, 2]`: a block of `from`, and one of `to`.
    pub pairs: u64,
    /// How many, at most `COPIED_BLOCKS_MAX`.
    pub count: usize,
    /// Bytes of a block of both.
    pub block_bytes: usize,
}

impl CopyBlocks {
    /// The kernel's name.
    pub const KERNEL: &str = "copy_blocks";

    /// Errors: blocks are no multiple of 16 bytes, or too many.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        const COPY: &str = CopyBlocks::KERNEL;
        multiple_of(COPY, "bytes of a block", self.block_bytes, VECTOR_BYTES)?;
        let per_block = COPY_THREADS * VECTOR_BYTES * VECTORS_PER_THREAD;
        let pieces = self.block_bytes.div_ceil(per_block).clamp(1, 1024) as u32;
        Ok(Launch {
            kernel: COPY.into(),
            grid: [pieces, along_yz(COPY, "blocks", self.count)?, 1],
            threads: COPY_THREADS as u32,
            shared_bytes: 0,
            arguments: vec![
                Argument::Pointer(self.to),
                Argument::Pointer(self.from),
                Argument::Pointer(self.pairs),
                Argument::U64(self.block_bytes as u64),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_threads_copies_16_kib() {
        let copy = CopyBlocks { to: 0, from: 0, pairs: 0, count: 9, block_bytes: 128 << 10 };
        assert_eq!(copy.launch().unwrap().grid, [8, 9, 1]);
        assert_eq!(CopyBlocks { block_bytes: 48, ..copy }.launch().unwrap().grid, [1, 9, 1]);
        assert!(CopyBlocks { block_bytes: 40, ..copy }.launch().is_err());
        assert!(CopyBlocks { count: COPIED_BLOCKS_MAX + 1, ..copy }.launch().is_err());
    }
}
