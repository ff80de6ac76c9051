//! Which workers hold which blocks.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use protocol::BlockHash;

/// A worker's place in the router's tables. Small numbers, used again after a worker has gone.
pub type Slot = u16;

/// Workers by block.
#[derive(Default)]
pub struct Holders {
    by_block: HashMap<BlockHash, Few, FewBits>,
}

/// Workers that hold one block; mostly there is one.
enum Few {
    One(Slot),
    /// In rising order.
    Many(Vec<Slot>),
}

impl Holders {
    /// The workers that hold a block, in rising order.
    pub fn of(&self, block: &BlockHash) -> &[Slot] {
        self.by_block.get(block).map_or(&[], Few::slots)
    }

    /// A worker that did not hold a block does now.
    pub fn add(&mut self, block: BlockHash, worker: Slot) {
        let few = self.by_block.entry(block);
        few.and_modify(|few| few.add(worker)).or_insert(Few::One(worker));
    }

    /// A worker that held a block does not any more.
    pub fn remove(&mut self, block: &BlockHash, worker: Slot) {
        let Some(few) = self.by_block.get_mut(block) else { return };
        match few {
            Few::One(_) => {
                self.by_block.remove(block);
            }
            Few::Many(slots) => {
                slots.retain(|slot| *slot != worker);
                if let [only] = slots[..] {
                    *few = Few::One(only);
                }
            }
        }
    }

    /// Blocks that any worker holds.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_block.len()
    }
}

impl Few {
    fn slots(&self) -> &[Slot] {
        match self {
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }

    /// Adds a worker that is not among them.
    fn add(&mut self, worker: Slot) {
        match self {
            Self::One(slot) => {
                *self = Self::Many(vec![worker.min(*slot), worker.max(*slot)]);
            }
            Self::Many(slots) => {
                let at = slots.partition_point(|slot| *slot < worker);
                slots.insert(at, worker);
            }
        }
    }
}

/// Hashes block hashes, whose bits are random already: takes some of them, mixed with a secret, so
/// that nobody can choose prompts that collide.
#[derive(Clone)]
struct FewBits {
    secret: u64,
}

struct FewBitsHasher {
    secret: u64,
    bits: u64,
}

impl Default for FewBits {
    fn default() -> Self {
        Self { secret: RandomState::new().hash_one(0) | 1 }
    }
}

impl BuildHasher for FewBits {
    type Hasher = FewBitsHasher;

    fn build_hasher(&self) -> FewBitsHasher {
        FewBitsHasher { secret: self.secret, bits: 0 }
    }
}

impl Hasher for FewBitsHasher {
    fn write(&mut self, bytes: &[u8]) {
        let words = bytes.as_chunks::<8>().0;
        for word in words {
            let product =
                u128::from(self.bits ^ u64::from_le_bytes(*word)) * u128::from(self.secret);
            self.bits = (product >> 64) as u64 ^ product as u64;
        }
    }

    /// The length of the hash, which is always the same.
    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.bits
    }
}
