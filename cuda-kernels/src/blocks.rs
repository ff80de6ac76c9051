//! How KV blocks are gathered into one contiguous buffer, and scattered from it.

use crate::launch::{Argument, Launch, LaunchError, along_yz, multiple_of};

const COPY_THREADS: usize = 256;
/// What a thread copies at once, and what all sizes are multiples of.
const VECTOR_BYTES: usize = 16;
/// A thread copies about so many vectors.
const VECTORS_PER_THREAD: usize = 4;

/// A part of each of some blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockRange {
    /// The pool's start in device memory.
    pub pool: u64,
    /// Bytes of one block.
    pub block_bytes: usize,
    /// Where in a block the part begins, in bytes.
    pub offset: usize,
    /// How long it is, in bytes.
    pub bytes: usize,
    /// u32 `[count]` in device memory: which blocks.
    pub blocks: u64,
    /// How many; at most 65,535.
    pub count: usize,
}

/// Copies the parts one after the other to `staging` (`count * bytes`). Errors: sizes that are no
/// multiples of 16, or too many blocks.
pub fn gather_blocks(range: &BlockRange, staging: u64) -> Result<Launch, LaunchError> {
    copy("gather_blocks", range, [staging, range.pool])
}

/// Copies what lies in `staging` one after the other to the parts of blocks, which are distinct.
/// Errors: as of `gather_blocks`.
pub fn scatter_blocks(range: &BlockRange, staging: u64) -> Result<Launch, LaunchError> {
    copy("scatter_blocks", range, [range.pool, staging])
}

fn copy(kernel: &'static str, range: &BlockRange, ends: [u64; 2]) -> Result<Launch, LaunchError> {
    multiple_of(kernel, "bytes of a block", range.block_bytes, VECTOR_BYTES)?;
    multiple_of(kernel, "bytes before a part", range.offset, VECTOR_BYTES)?;
    multiple_of(kernel, "bytes of a part", range.bytes, VECTOR_BYTES)?;
    let per_block = COPY_THREADS * VECTOR_BYTES * VECTORS_PER_THREAD;
    let pieces = range.bytes.div_ceil(per_block).clamp(1, 1024) as u32;
    Ok(Launch {
        kernel: kernel.into(),
        grid: [pieces, along_yz(kernel, "blocks", range.count)?, 1],
        threads: COPY_THREADS as u32,
        shared_bytes: 0,
        arguments: vec![
            Argument::Pointer(ends[0]),
            Argument::Pointer(ends[1]),
            Argument::Pointer(range.blocks),
            Argument::U64(range.block_bytes as u64),
            Argument::U64(range.offset as u64),
            Argument::U64(range.bytes as u64),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_threads_copies_16_kib() {
        let range = BlockRange {
            pool: 0,
            block_bytes: 2 << 20,
            offset: 0,
            bytes: 2 << 20,
            blocks: 0,
            count: 9,
        };
        assert_eq!(gather_blocks(&range, 0).unwrap().grid, [128, 9, 1]);
        let short = BlockRange { bytes: 48, ..range };
        assert_eq!(scatter_blocks(&short, 0).unwrap().grid, [1, 9, 1]);
        assert!(gather_blocks(&BlockRange { bytes: 40, ..range }, 0).is_err());
        assert!(gather_blocks(&BlockRange { offset: 8, ..range }, 0).is_err());
        assert!(gather_blocks(&BlockRange { count: 65_536, ..range }, 0).is_err());
    }
}
