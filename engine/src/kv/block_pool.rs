//! A fixed set of KV blocks, shared by reference count (paged attention, Kwon et al. 2023), with a
//! prefix cache: a block whose content has a hash stays findable after its last user let go, until
//! it is the least recently used and room is needed.
//!
//! Each block is in exactly one state: free (no content), cached (content, no user) or used.

use std::collections::{BTreeMap, HashMap};

use protocol::BlockHash;

/// What changed in the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// A block can be found by this hash from now on.
    Stored(BlockHash),
    /// It no longer can.
    Removed(BlockHash),
}

/// How many blocks are in each state. Their sum is the pool's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Without content.
    pub free: usize,
    /// With content that can be found by hash, and no user.
    pub cached: usize,
    /// Held by sequences, reservations or leases.
    pub used: usize,
}

#[derive(Clone, Default)]
struct Block {
    users: u32,
    hash: Option<BlockHash>,
    /// Its key in `evictable` while it is cached.
    last_use: u64,
}

/// See the module's description.
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<u32>,
    by_hash: HashMap<BlockHash, u32>,
    /// Cached blocks, least recently used first.
    evictable: BTreeMap<u64, u32>,
    uses: u64,
    events: Vec<KvEvent>,
}

impl BlockPool {
    /// A pool of free blocks.
    pub fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); blocks],
            free: (0..blocks as u32).rev().collect(),
            by_hash: HashMap::new(),
            evictable: BTreeMap::new(),
            uses: 0,
            events: Vec::new(),
        }
    }

    /// How many blocks are in each state.
    pub fn counts(&self) -> BlockCounts {
        let (free, cached) = (self.free.len(), self.evictable.len());
        BlockCounts { free, cached, used: self.blocks.len() - free - cached }
    }

    /// Blocks that `allocate` could give.
    pub fn available(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Takes `count` blocks for one user each, evicting cached ones where needed; none if there
    /// are too few.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.available() {
            return None;
        }
        let take = |pool: &mut Self| pool.free.pop().or_else(|| pool.evict_oldest());
        let blocks: Vec<u32> = (0..count).filter_map(|_| take(self)).collect();
        for block in &blocks {
            self.blocks[*block as usize].users = 1;
        }
        debug_assert_eq!(blocks.len(), count, "availability was checked");
        Some(blocks)
    }

    /// Takes the blocks of the longest cached run of `hashes` for one more user each.
    pub fn share_prefix(&mut self, hashes: &[BlockHash]) -> Vec<u32> {
        let found: Vec<u32> =
            hashes.iter().map_while(|hash| self.by_hash.get(hash).copied()).collect();
        for index in &found {
            let block = &mut self.blocks[*index as usize];
            if block.users == 0 {
                self.evictable.remove(&block.last_use);
            }
            block.users += 1;
        }
        found
    }

    /// Makes a used block's content findable. Where another block already has this hash, that one
    /// stays the findable one.
    pub fn register(&mut self, block: u32, hash: BlockHash) {
        debug_assert!(self.blocks[block as usize].users > 0, "only used blocks gain content");
        if self.blocks[block as usize].hash.is_none() && !self.by_hash.contains_key(&hash) {
            self.blocks[block as usize].hash = Some(hash);
            self.by_hash.insert(hash, block);
            self.events.push(KvEvent::Stored(hash));
        }
    }

    /// One user lets go of a sequence's blocks. The last blocks become the oldest: a prefix is
    /// worth more than what follows it.
    pub fn release(&mut self, blocks: &[u32]) {
        for index in blocks.iter().rev() {
            let block = &mut self.blocks[*index as usize];
            debug_assert!(block.users > 0, "block {index} is released twice");
            block.users -= 1;
            if block.users > 0 {
                continue;
            }
            if block.hash.is_some() {
                self.uses += 1;
                block.last_use = self.uses;
                self.evictable.insert(self.uses, *index);
            } else {
                self.free.push(*index);
            }
        }
    }

    /// The changes since the last call.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.events)
    }

    /// The hashes by which blocks can be found, in no order.
    pub fn hashes(&self) -> impl Iterator<Item = BlockHash> + '_ {
        self.by_hash.keys().copied()
    }

    fn evict_oldest(&mut self) -> Option<u32> {
        let (_, index) = self.evictable.pop_first()?;
        if let Some(hash) = self.blocks[index as usize].hash.take() {
            self.by_hash.remove(&hash);
            self.events.push(KvEvent::Removed(hash));
        }
        Some(index)
    }

    /// Checks that every block is in exactly one state. For tests and debug builds.
    pub fn assert_consistent(&self) {
        let unused_with_content =
            self.blocks.iter().filter(|block| block.users == 0 && block.hash.is_some()).count();
        let used = self.blocks.iter().filter(|block| block.users > 0).count();
        let counts = self.counts();
        assert_eq!(counts.cached, unused_with_content, "cached blocks are the evictable ones");
        assert_eq!(counts.used, used, "free + cached + used = total");
        let hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        assert_eq!(self.by_hash.len(), hashed, "each hash names one block");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> BlockHash {
        BlockHash([byte; 16])
    }

    fn counts(free: usize, cached: usize, used: usize) -> BlockCounts {
        BlockCounts { free, cached, used }
    }

    #[test]
    fn content_outlives_its_user_and_is_found_again() {
        let mut pool = BlockPool::new(4);
        let blocks = pool.allocate(3).unwrap();
        pool.register(blocks[0], hash(1));
        pool.register(blocks[1], hash(2));
        pool.release(&blocks);
        assert_eq!(pool.counts(), counts(2, 2, 0));
        assert_eq!(pool.share_prefix(&[hash(1), hash(2), hash(3)]), blocks[..2]);
        assert_eq!(pool.share_prefix(&[hash(1), hash(9), hash(2)]), blocks[..1]);
        assert_eq!(pool.counts(), counts(2, 0, 2));
        pool.release(&blocks[..2]);
        pool.release(&blocks[..1]);
        assert_eq!(pool.counts(), counts(2, 2, 0));
        pool.assert_consistent();
    }

    #[test]
    fn eviction_takes_the_least_recent_and_the_tail_first() {
        let mut pool = BlockPool::new(3);
        let blocks = pool.allocate(3).unwrap();
        for (block, byte) in blocks.iter().zip(1..) {
            pool.register(*block, hash(byte));
        }
        pool.take_events();
        pool.release(&blocks);
        pool.allocate(1).unwrap();
        assert_eq!(pool.take_events(), [KvEvent::Removed(hash(3))]);
        assert_eq!(pool.share_prefix(&[hash(1), hash(2), hash(3)]).len(), 2);
        assert_eq!(pool.allocate(1), None, "everything is used");
        pool.assert_consistent();
    }

    #[test]
    fn equal_content_is_findable_once() {
        let mut pool = BlockPool::new(2);
        let blocks = pool.allocate(2).unwrap();
        pool.register(blocks[0], hash(1));
        pool.register(blocks[1], hash(1));
        assert_eq!(pool.take_events(), [KvEvent::Stored(hash(1))]);
        pool.release(&blocks);
        assert_eq!(pool.counts(), counts(1, 1, 0));
        pool.assert_consistent();
    }
}
