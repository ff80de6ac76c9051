//! Which worker's prefix cache holds which blocks, as told by KV events and snapshots.

use std::collections::{HashMap, HashSet, VecDeque};

use protocol::BlockHash;

use crate::holders::{Holders, Slot};
use crate::worker_table::Time;

/// Messages that wait for one worker's snapshot; beyond, the oldest is dropped, which makes a gap.
const PENDING_MAX: usize = 1024;

/// Load reports that speak of unseen events for this long mean that those were lost.
const EVENTS_DELAY_MAX: Time = 100_000;

/// Parts of an interval in which workers' prefixes end that are told apart.
const PARTS: usize = 8;

/// Of a worker that holds the first block, until more is known.
const FIRST: u32 = 1;

/// Blocks by worker, and workers by block.
#[derive(Default)]
pub struct PrefixIndex {
    holders: Holders,
    caches: HashMap<Slot, Cache>,
}

/// One worker's prefix cache, as known here.
#[derive(Default)]
struct Cache {
    /// What is remembered at most: a cache has no more blocks than its pool.
    blocks_max: usize,
    blocks: HashSet<BlockHash>,
    /// The sequence number that the next message must have.
    next_sequence: u64,
    /// While a snapshot is awaited, what came since it was asked for.
    awaiting: Option<VecDeque<Events>>,
    /// Since when load reports speak of events that have not come, and of which number they lack.
    behind: Option<(Time, u64)>,
}

/// One message of changes.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Rises by one per message of a worker.
    pub sequence: u64,
    /// Blocks that are there now.
    pub stored: Vec<BlockHash>,
    /// Blocks that no longer are.
    pub removed: Vec<BlockHash>,
}

/// What is known of a worker no longer holds: its snapshot has to be fetched.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// As far as can be told, the index is the worker's truth.
    Kept,
    /// Messages were missed just now.
    Lost,
}

impl PrefixIndex {
    /// Begins to follow a worker with an empty cache of so many blocks at most.
    pub fn follow(&mut self, worker: Slot, blocks_max: usize) {
        self.forget(worker);
        self.caches.insert(worker, Cache { blocks_max, ..Default::default() });
    }

    /// Forgets a worker.
    pub fn forget(&mut self, worker: Slot) {
        self.clear(worker);
        self.caches.remove(&worker);
    }

    /// Applies one message. After a gap what was known of the worker is forgotten, not guessed
    /// over, and messages wait for its snapshot.
    pub fn apply(&mut self, worker: Slot, events: Events) -> Sync {
        let Some(cache) = self.caches.get_mut(&worker) else { return Sync::Kept };
        if let Some(pending) = &mut cache.awaiting {
            if pending.len() >= PENDING_MAX {
                pending.pop_front();
            }
            pending.push_back(events);
            return Sync::Kept;
        }
        if events.sequence < cache.next_sequence {
            return Sync::Kept;
        }
        if events.sequence > cache.next_sequence {
            self.lose(worker, VecDeque::from([events]));
            return Sync::Lost;
        }
        cache.next_sequence += 1;
        for hash in events.removed {
            self.remove(worker, hash);
        }
        for hash in events.stored {
            self.insert(worker, hash);
        }
        Sync::Kept
    }

    /// A worker says which number its next message will have. When this is news for too long, the
    /// messages before it were lost.
    pub fn expect(&mut self, worker: Slot, next_sequence: u64, now: Time) -> Sync {
        let Some(cache) = self.caches.get_mut(&worker) else { return Sync::Kept };
        if cache.awaiting.is_some() || next_sequence <= cache.next_sequence {
            cache.behind = None;
            return Sync::Kept;
        }
        match cache.behind {
            Some((since, lacking)) if lacking == cache.next_sequence => {
                if now.saturating_sub(since) < EVENTS_DELAY_MAX {
                    return Sync::Kept;
                }
                self.lose(worker, VecDeque::new());
                Sync::Lost
            }
            _ => {
                cache.behind = Some((now, cache.next_sequence));
                Sync::Kept
            }
        }
    }

    /// Replaces what is known of a worker, and applies what came since.
    pub fn restore(&mut self, worker: Slot, next_sequence: u64, hashes: Vec<BlockHash>) -> Sync {
        let Some(cache) = self.caches.get_mut(&worker) else { return Sync::Kept };
        let mut pending = cache.awaiting.take().unwrap_or_default();
        cache.next_sequence = next_sequence;
        self.clear(worker);
        for hash in hashes {
            self.insert(worker, hash);
        }
        pending.make_contiguous().sort_by_key(|events| events.sequence);
        while let Some(events) = pending.pop_front() {
            if self.apply(worker, events) == Sync::Lost {
                // The rest waits for another snapshot.
                if let Some(awaiting) =
                    self.caches.get_mut(&worker).and_then(|c| c.awaiting.as_mut())
                {
                    awaiting.extend(pending);
                }
                return Sync::Lost;
            }
        }
        Sync::Kept
    }

    /// What is known of a worker's cache; nothing while its snapshot is awaited.
    pub fn blocks(&self, worker: Slot) -> Option<&HashSet<BlockHash>> {
        self.caches.get(&worker).filter(|cache| cache.awaiting.is_none()).map(|cache| &cache.blocks)
    }

    /// How many of a prompt's leading blocks each worker holds, at least, by slot (of which there are
    /// `slots`): what is left to compute is known to an eighth, and exactly where little is left.
    /// (Looking at each block would take most of a decision's time.) A worker that holds the first
    /// block and a later one is taken to hold all between: caches evict a prefix after what follows it.
    /// A rare hole makes a prediction too good, and nothing wrong.
    pub fn matched_blocks(&self, prompt: &[BlockHash], slots: usize) -> Vec<u32> {
        let mut matched = vec![0; slots];
        let Some((first, _)) = prompt.split_first() else { return matched };
        let mut unseen = 0;
        for slot in self.holders.of(first) {
            matched[*slot as usize] = FIRST;
            unseen += 1;
        }
        if unseen == 0 {
            return matched;
        }
        // Look-ups wait for memory: made together, they wait together.
        let intervals: Vec<(usize, &[Slot])> = interval_starts(prompt.len())
            .map(|start| (start, self.holders.of(&prompt[start])))
            .collect();
        let mut beyond = prompt.len();
        for (start, holders) in intervals {
            // Nobody unseen holds what is beyond.
            if unseen > 0 && holders.iter().any(|slot| matched[*slot as usize] == FIRST) {
                unseen -= self.see_interval(&prompt[..beyond], start, &mut matched);
            }
            beyond = start;
        }
        matched
    }

    /// Finds out of whom only the first block was seen where the prefix ends, if it is at `start` or
    /// beyond. Returns how many were found.
    fn see_interval(&self, prompt: &[BlockHash], start: usize, matched: &mut [u32]) -> usize {
        let part = (prompt.len() - start).div_ceil(PARTS);
        let mut held = [(0, &[][..]); PARTS];
        for (held, at) in held.iter_mut().zip((start..prompt.len()).step_by(part)) {
            *held = (at, self.holders.of(&prompt[at]));
        }
        let mut found = 0;
        for (at, holders) in held.iter().rev().filter(|(at, _)| *at > 0) {
            for slot in *holders {
                let matched = &mut matched[*slot as usize];
                if *matched == FIRST {
                    *matched = *at as u32 + 1;
                    found += 1;
                }
            }
        }
        found
    }

    fn lose(&mut self, worker: Slot, pending: VecDeque<Events>) {
        self.clear(worker);
        if let Some(cache) = self.caches.get_mut(&worker) {
            cache.awaiting = Some(pending);
            cache.behind = None;
        }
    }

    fn clear(&mut self, worker: Slot) {
        let cache = self.caches.get_mut(&worker);
        let blocks = cache.map(|cache| std::mem::take(&mut cache.blocks)).unwrap_or_default();
        for hash in blocks {
            self.holders.remove(&hash, worker);
        }
    }

    fn insert(&mut self, worker: Slot, hash: BlockHash) {
        let Some(cache) = self.caches.get_mut(&worker) else { return };
        if cache.blocks.len() < cache.blocks_max && cache.blocks.insert(hash) {
            self.holders.add(hash, worker);
        }
    }

    fn remove(&mut self, worker: Slot, hash: BlockHash) {
        let known = self.caches.get_mut(&worker).is_some_and(|cache| cache.blocks.remove(&hash));
        if known {
            self.holders.remove(&hash, worker);
        }
    }
}

/// Where intervals begin that double from the end of a prompt.
fn interval_starts(blocks: usize) -> impl Iterator<Item = usize> {
    let lengths = std::iter::successors(Some(1_usize), |left| left.checked_mul(2));
    let mut is_done = blocks == 0;
    lengths.map_while(move |left| {
        let start = (!is_done).then(|| blocks.saturating_sub(left));
        is_done |= left >= blocks;
        start
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> BlockHash {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        BlockHash(bytes)
    }

    fn hashes(numbers: impl IntoIterator<Item = usize>) -> Vec<BlockHash> {
        numbers.into_iter().map(hash).collect()
    }

    fn events(sequence: u64, stored: &[usize], removed: &[usize]) -> Events {
        let hashes = |numbers: &[usize]| hashes(numbers.iter().copied());
        Events { sequence, stored: hashes(stored), removed: hashes(removed) }
    }

    fn index(workers: Slot, blocks_max: usize) -> PrefixIndex {
        let mut index = PrefixIndex::default();
        (0..workers).for_each(|worker| index.follow(worker, blocks_max));
        index
    }

    /// The workers that hold any of a prompt's blocks, and how many.
    fn matched(index: &PrefixIndex, prompt: &[BlockHash]) -> Vec<(Slot, usize)> {
        let matched = index.matched_blocks(prompt, index.caches.len());
        let by_slot = matched.iter().enumerate().filter(|(_, blocks)| **blocks > 0);
        by_slot.map(|(slot, blocks)| (slot as Slot, *blocks as usize)).collect()
    }

    #[track_caller]
    fn check(index: &PrefixIndex, prompt: &[usize], expected: &[(Slot, usize)]) {
        assert_eq!(matched(index, &hashes(prompt.iter().copied())), expected);
    }

    #[test]
    fn leading_blocks_count() {
        let mut index = index(3, 8);
        assert_eq!(index.apply(0, events(0, &[1, 2, 3], &[])), Sync::Kept);
        assert_eq!(index.apply(1, events(0, &[1], &[])), Sync::Kept);
        assert_eq!(index.apply(2, events(0, &[2, 3], &[])), Sync::Kept);
        check(&index, &[1, 2, 3, 4], &[(0, 3), (1, 1)]);
        check(&index, &[9, 1], &[]);
        check(&index, &[], &[]);
        assert_eq!(index.apply(0, events(1, &[], &[3])), Sync::Kept);
        check(&index, &[1, 2, 3], &[(0, 2), (1, 1)]);
    }

    #[test]
    fn in_long_prompts_what_is_left_is_known_to_an_eighth() {
        const BLOCKS: usize = 500;
        let mut index = index(BLOCKS as Slot + 1, BLOCKS);
        for end in 0..=BLOCKS {
            let stored: Vec<usize> = (0..end).collect();
            assert_eq!(index.apply(end as Slot, events(0, &stored, &[])), Sync::Kept);
        }
        let ends: HashMap<Slot, usize> = matched(&index, &hashes(0..BLOCKS)).into_iter().collect();
        assert_eq!(ends.len(), BLOCKS, "the worker that holds nothing is left out");
        for end in 1..=BLOCKS {
            let (found, left) = (ends[&(end as Slot)], BLOCKS - end);
            assert!((end.saturating_sub(left / 7)..=end).contains(&found), "{found} of {end}");
        }
    }

    #[test]
    fn a_gap_is_healed_by_a_snapshot_and_what_came_since() {
        let mut index = index(1, 8);
        assert_eq!(index.apply(0, events(0, &[1], &[])), Sync::Kept);
        assert_eq!(index.apply(0, events(2, &[3], &[])), Sync::Lost, "1 is missing");
        assert_eq!(index.blocks(0), None);
        check(&index, &[1], &[]);
        assert_eq!(index.apply(0, events(4, &[5], &[])), Sync::Kept, "it waits");
        assert_eq!(index.apply(0, events(3, &[], &[2])), Sync::Kept, "in whatever order");
        assert_eq!(index.restore(0, 2, hashes([1, 2])), Sync::Kept);
        assert_eq!(index.blocks(0), Some(&hashes([1, 3, 5]).into_iter().collect()));
        assert_eq!(index.apply(0, events(1, &[7], &[])), Sync::Kept, "an old one changes nothing");
        check(&index, &[7], &[]);
    }

    #[test]
    fn a_gap_behind_the_snapshot_asks_for_another() {
        let mut index = index(1, 8);
        assert_eq!(index.apply(0, events(5, &[1], &[])), Sync::Lost);
        assert_eq!(index.apply(0, events(7, &[2], &[])), Sync::Kept);
        assert_eq!(index.restore(0, 5, Vec::new()), Sync::Lost, "6 is missing");
        assert_eq!(index.restore(0, 7, hashes([1, 9])), Sync::Kept);
        assert_eq!(index.blocks(0), Some(&hashes([1, 9, 2]).into_iter().collect()));
    }

    #[test]
    fn a_lost_last_message_is_noticed_by_load_reports() {
        let mut index = index(1, 8);
        let start = 5;
        assert_eq!(index.expect(0, 0, start), Sync::Kept);
        assert_eq!(index.expect(0, 1, start), Sync::Kept, "it may be on its way");
        assert_eq!(index.apply(0, events(0, &[1], &[])), Sync::Kept);
        let later = start + EVENTS_DELAY_MAX;
        assert_eq!(index.expect(0, 2, later), Sync::Kept, "another one is on its way");
        assert_eq!(index.expect(0, 2, later + EVENTS_DELAY_MAX), Sync::Lost);
        assert_eq!(index.expect(0, 3, later + 9 * EVENTS_DELAY_MAX), Sync::Kept, "asked already");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_with_its_worker() {
        let mut index = index(2, 8);
        let many: Vec<usize> = (0..100).collect();
        assert_eq!(index.apply(0, events(0, &many, &[])), Sync::Kept);
        assert_eq!(index.apply(1, events(0, &[0, 1], &[])), Sync::Kept);
        assert_eq!(index.holders.len(), 8);
        assert_eq!(index.apply(1, events(9, &[], &[])), Sync::Lost);
        for sequence in 10..5_000 {
            assert_eq!(index.apply(1, events(sequence, &[], &[])), Sync::Kept);
        }
        let waiting = index.caches[&1].awaiting.as_ref().map(VecDeque::len);
        assert_eq!(waiting, Some(PENDING_MAX));
        index.forget(0);
        index.forget(1);
        assert!(index.holders.len() == 0 && index.caches.is_empty());
    }
}
