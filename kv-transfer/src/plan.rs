//! What has to be copied where: pure, and checked before a byte moves.

use crate::KvLayout;

/// One block to move. What `destination` counts, the pool's blocks or those of a writer, depends
/// on who is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Block of the source pool.
    pub source: u32,
    /// Block of the destination: its index in a `BlockWriter`, or for `plan` in the pool.
    pub destination: usize,
}

/// One contiguous copy: whole blocks that follow each other on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOp {
    /// First block in the source pool.
    pub source: u32,
    /// First block in the destination pool.
    pub destination: u32,
    /// How many blocks; never 0.
    pub blocks: u32,
}

/// A pool as seen from outside: what its blocks look like and how many it has.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// The shape of its blocks.
    pub layout: &'a KvLayout,
    /// How many there are.
    pub blocks: usize,
}

/// Why copies are not carried out. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Blocks of another shape or numerics id.
    #[error("the pools' KV layouts differ")]
    LayoutMismatch,
    /// A block outside of the source.
    #[error("block {block} is not in a source of {blocks} blocks")]
    Source {
        /// Which.
        block: usize,
        /// How many there are.
        blocks: usize,
    },
    /// A block outside of the destination.
    #[error("block {block} is not in a destination of {blocks} blocks")]
    Destination {
        /// Which.
        block: usize,
        /// How many there are.
        blocks: usize,
    },
    /// Two copies into one block.
    #[error("block {block} is a destination twice")]
    Duplicate {
        /// Which.
        block: usize,
    },
    /// A pool of more bytes than can be addressed, or of none.
    #[error("a KV layout's size is zero or overflows")]
    Overflow,
}

/// Plans copies between two pools. The operations write each destination block that `copies` names
/// exactly once and no other; they are ordered by destination, and neighbours are one operation.
pub fn plan(
    source: Extent,
    destination: Extent,
    copies: &[BlockCopy],
) -> Result<Vec<CopyOp>, PlanError> {
    if source.layout != destination.layout {
        return Err(PlanError::LayoutMismatch);
    }
    check_addressable(source)?;
    check_addressable(destination)?;
    let mut ops = Vec::with_capacity(copies.len());
    for copy in copies {
        ops.push(single(source, destination, copy)?);
    }
    ops.sort_unstable_by_key(|op: &CopyOp| op.destination);
    if let Some(pair) = ops.windows(2).find(|pair| pair[0].destination == pair[1].destination) {
        return Err(PlanError::Duplicate { block: pair[0].destination as usize });
    }
    ops.dedup_by(|op, before| {
        let is_neighbour = extends(before, op);
        before.blocks += u32::from(is_neighbour);
        is_neighbour
    });
    Ok(ops)
}

/// Splits operations so that none has more than `blocks_max` blocks, which is at least 1.
pub(crate) fn split(ops: &[CopyOp], blocks_max: u32) -> Vec<CopyOp> {
    let pieces = |op: &CopyOp| {
        let op = *op;
        (0..op.blocks).step_by(blocks_max as usize).map(move |skipped| CopyOp {
            source: op.source + skipped,
            destination: op.destination + skipped,
            blocks: blocks_max.min(op.blocks - skipped),
        })
    };
    ops.iter().flat_map(pieces).collect()
}

/// Every byte of the pool has an offset.
fn check_addressable(pool: Extent) -> Result<(), PlanError> {
    let bytes = pool.layout.checked_block_bytes().and_then(|bytes| bytes.checked_mul(pool.blocks));
    bytes.filter(|bytes| *bytes <= isize::MAX as usize).map(|_| ()).ok_or(PlanError::Overflow)
}

fn single(source: Extent, destination: Extent, copy: &BlockCopy) -> Result<CopyOp, PlanError> {
    let from = copy.source as usize;
    if from >= source.blocks {
        return Err(PlanError::Source { block: from, blocks: source.blocks });
    }
    let outside = PlanError::Destination { block: copy.destination, blocks: destination.blocks };
    if copy.destination >= destination.blocks {
        return Err(outside);
    }
    let to = u32::try_from(copy.destination).map_err(|_| outside)?;
    Ok(CopyOp { source: copy.source, destination: to, blocks: 1 })
}

/// Whether `op` goes on where `before` ends, on both sides. In 64 bits, as pools may end at the
/// last number there is.
fn extends(before: &CopyOp, op: &CopyOp) -> bool {
    let goes_on =
        |start: u32, next: u32| u64::from(start) + u64::from(before.blocks) == u64::from(next);
    goes_on(before.source, op.source) && goes_on(before.destination, op.destination)
}
