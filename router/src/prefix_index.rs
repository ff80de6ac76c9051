//! Which worker's prefix cache holds which blocks, as told by KV events.

use std::collections::{HashMap, HashSet};

use protocol::{BlockHash, WorkerLife};

/// Blocks by worker, and workers by block.
#[derive(Default)]
pub struct PrefixIndex {
    holders: HashMap<BlockHash, Vec<WorkerLife>>,
    caches: HashMap<WorkerLife, Cache>,
}

#[derive(Default)]
struct Cache {
    blocks: HashSet<BlockHash>,
    /// The sequence number that the next message must have.
    next_sequence: u64,
}

impl PrefixIndex {
    /// Applies one worker's message of changes. `blocks_max` bounds what is remembered of it: a
    /// cache has no more blocks than its pool. After a gap, what was known of the worker no longer
    /// holds; it is forgotten rather than guessed over. Returns whether there was one.
    pub fn apply(
        &mut self,
        worker: &WorkerLife,
        sequence: u64,
        stored: impl Iterator<Item = BlockHash>,
        removed: impl Iterator<Item = BlockHash>,
        blocks_max: usize,
    ) -> bool {
        let expected = self.caches.get(worker).map_or(0, |cache| cache.next_sequence);
        let gap = sequence != expected;
        if gap {
            self.forget(worker);
        }
        for hash in removed {
            self.remove(worker, hash);
        }
        let cache = self.caches.entry(worker.clone()).or_default();
        cache.next_sequence = sequence.wrapping_add(1);
        for hash in stored {
            if cache.blocks.len() < blocks_max && cache.blocks.insert(hash) {
                self.holders.entry(hash).or_default().push(worker.clone());
            }
        }
        gap
    }

    /// Forgets a worker.
    pub fn forget(&mut self, worker: &WorkerLife) {
        let Some(cache) = self.caches.remove(worker) else { return };
        for hash in cache.blocks {
            self.remove_holder(worker, hash);
        }
    }

    /// For each worker, how many of a prompt's leading blocks it holds; workers with none are left
    /// out.
    pub fn matched_blocks(&self, prompt: &[BlockHash]) -> HashMap<WorkerLife, usize> {
        let mut matched: HashMap<WorkerLife, usize> = HashMap::new();
        for (depth, hash) in prompt.iter().enumerate() {
            let holders = self.holders.get(hash).map_or(&[][..], Vec::as_slice);
            if depth == 0 {
                matched.extend(holders.iter().map(|holder| (holder.clone(), 1)));
                continue;
            }
            // A worker counts on only while it holds every block so far.
            let mut counting_on = 0;
            for holder in holders {
                if let Some(count) = matched.get_mut(holder).filter(|count| **count == depth) {
                    *count += 1;
                    counting_on += 1;
                }
            }
            if counting_on == 0 {
                break;
            }
        }
        matched
    }

    fn remove(&mut self, worker: &WorkerLife, hash: BlockHash) {
        let known = self.caches.get_mut(worker).is_some_and(|cache| cache.blocks.remove(&hash));
        if known {
            self.remove_holder(worker, hash);
        }
    }

    fn remove_holder(&mut self, worker: &WorkerLife, hash: BlockHash) {
        if let Some(holders) = self.holders.get_mut(&hash) {
            holders.retain(|holder| holder != worker);
            if holders.is_empty() {
                self.holders.remove(&hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Incarnation;

    fn worker(name: &str) -> WorkerLife {
        WorkerLife { id: name.into(), incarnation: Incarnation(1) }
    }

    fn hashes(bytes: &[u8]) -> Vec<BlockHash> {
        bytes.iter().map(|byte| BlockHash([*byte; 16])).collect()
    }

    fn apply(index: &mut PrefixIndex, name: &str, sequence: u64, stored: &[u8], removed: &[u8]) {
        let (stored, removed) = (hashes(stored), hashes(removed));
        index.apply(&worker(name), sequence, stored.into_iter(), removed.into_iter(), 8);
    }

    #[track_caller]
    fn check(index: &PrefixIndex, prompt: &[u8], expected: &[(&str, usize)]) {
        let expected = expected.iter().map(|(name, count)| (worker(name), *count)).collect();
        assert_eq!(index.matched_blocks(&hashes(prompt)), expected);
    }

    #[test]
    fn leading_blocks_count_and_holes_end_the_match() {
        let mut index = PrefixIndex::default();
        apply(&mut index, "a", 0, &[1, 2, 3], &[]);
        apply(&mut index, "b", 0, &[1, 3], &[]);
        apply(&mut index, "c", 0, &[2, 3], &[]);
        check(&index, &[1, 2, 3, 4], &[("a", 3), ("b", 1)]);
        check(&index, &[9, 1], &[]);
        apply(&mut index, "a", 1, &[], &[2]);
        check(&index, &[1, 2, 3], &[("a", 1), ("b", 1)]);
    }

    #[test]
    fn a_gap_forgets_what_came_before() {
        let mut index = PrefixIndex::default();
        apply(&mut index, "a", 0, &[1, 2], &[]);
        apply(&mut index, "a", 2, &[3], &[]);
        check(&index, &[1], &[]);
        check(&index, &[3], &[("a", 1)]);
    }

    #[test]
    fn forgotten_workers_leave_nothing() {
        let mut index = PrefixIndex::default();
        apply(&mut index, "a", 0, &[1, 2], &[]);
        index.forget(&worker("a"));
        assert!(index.holders.is_empty() && index.caches.is_empty());
    }

    #[test]
    fn what_is_remembered_of_a_worker_is_bounded() {
        let mut index = PrefixIndex::default();
        let many: Vec<u8> = (0..100).collect();
        apply(&mut index, "a", 0, &many, &[]);
        assert_eq!(index.holders.len(), 8);
    }
}
