//! Leases: for how long, and to whom, blocks at their source stay as they are.
//!
//! A lease is granted to one reader, who shows its random capability with each call. It ends by
//! `finish`, by revocation, or when it was not renewed in time. An ended lease's blocks are handed
//! back to their holder only after a grace, and never while a read is under way.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What keeps the leased blocks as they are; dropping it gives them back to the pool.
pub type Holder = Arc<dyn Send + Sync>;

/// Names a lease at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u64);

/// What a reader shows: 128 random bits. Not printable, so that it cannot slip into a log.
#[derive(Clone, Copy)]
pub struct Capability([u8; 16]);

impl PartialEq for Capability {
    /// Looks at every byte, so that the time it takes says nothing about a guess.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        std::hint::black_box(pairs.fold(0, |differing, (a, b)| differing | (a ^ b))) == 0
    }
}

impl Eq for Capability {}

impl Capability {
    fn random() -> Self {
        Self(rand::random())
    }

    /// The wire form.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// A granted lease as its reader knows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Which lease.
    pub id: LeaseId,
    /// The right to read under it.
    pub capability: Capability,
}

/// How long leases last.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// From a grant or renewal to the end.
    pub duration: Duration,
    /// From the grant to the end, however often renewed.
    pub cap: Duration,
    /// From the end to the blocks' reuse.
    pub grace: Duration,
    /// Leases alive at once; a grant beyond is refused.
    pub leases_max: usize,
}

impl Default for LeaseLimits {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(10),
            cap: Duration::from_secs(600),
            grace: Duration::from_secs(1),
            leases_max: 4096,
        }
    }
}

/// Why a lease does not allow what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Never granted, finished, revoked, or expired and collected; or the capability is another's.
    #[error("the lease is unknown or has ended")]
    Unknown,
    /// Not renewed in time.
    #[error("the lease expired")]
    Expired,
    /// A block was asked for that was not announced.
    #[error("the block was not announced under this lease")]
    NotAnnounced,
    /// It was finished while a read was under way.
    #[error("the lease was finished during a read")]
    BeingRead,
    /// As many leases as allowed are alive.
    #[error("too many leases")]
    TooMany,
}

struct Entry {
    capability: Capability,
    /// Held, not read: see `Holder`.
    _holder: Holder,
    blocks: HashSet<u32>,
    granted: Instant,
    ends: Instant,
    revoked: bool,
    readers: u32,
}

/// All leases of one pool.
pub struct LeaseTable {
    limits: LeaseLimits,
    entries: Mutex<HashMap<LeaseId, Entry>>,
}

impl LeaseTable {
    /// An empty table.
    pub fn new(limits: LeaseLimits) -> Self {
        Self { limits, entries: Mutex::default() }
    }

    /// How long leases last here.
    pub fn limits(&self) -> LeaseLimits {
        self.limits
    }

    /// Leases not yet handed back.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether no lease is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grants a lease over blocks that `holder` keeps; they are announced as they are computed.
    pub fn grant(&self, now: Instant, holder: Holder) -> Result<Lease, LeaseError> {
        let mut entries = self.entries.lock();
        if entries.len() >= self.limits.leases_max {
            return Err(LeaseError::TooMany);
        }
        let lease = Lease { id: LeaseId(rand::random()), capability: Capability::random() };
        let entry = Entry {
            capability: lease.capability,
            _holder: holder,
            blocks: HashSet::new(),
            granted: now,
            ends: now + self.limits.duration,
            revoked: false,
            readers: 0,
        };
        entries.insert(lease.id, entry);
        Ok(lease)
    }

    /// Adds blocks that may now be read. A lease that has ended takes none.
    pub fn announce(&self, id: LeaseId, blocks: &[u32]) {
        if let Some(entry) = self.entries.lock().get_mut(&id) {
            entry.blocks.extend(blocks);
        }
    }

    /// Extends a living lease.
    pub fn renew(&self, now: Instant, lease: Lease) -> Result<(), LeaseError> {
        let mut entries = self.entries.lock();
        let entry = alive(&mut entries, now, lease)?;
        entry.ends = (now + self.limits.duration).min(entry.granted + self.limits.cap);
        Ok(())
    }

    /// Runs `read` while the lease pins its blocks. Errors: the lease does not allow `blocks`.
    pub fn read<R>(
        &self,
        now: Instant,
        lease: Lease,
        blocks: &[u32],
        read: impl FnOnce() -> R,
    ) -> Result<R, LeaseError> {
        let _pin = self.pin(now, lease, blocks.iter().copied())?;
        Ok(read())
    }

    /// Keeps the leased blocks as they are until the pin is dropped, however the lease ends. Who
    /// holds a pin bounds the time. Errors: the lease does not allow `blocks`.
    pub fn pin(
        &self,
        now: Instant,
        lease: Lease,
        mut blocks: impl Iterator<Item = u32>,
    ) -> Result<ReadPin<'_>, LeaseError> {
        let mut entries = self.entries.lock();
        let entry = alive(&mut entries, now, lease)?;
        if !blocks.all(|block| entry.blocks.contains(&block)) {
            return Err(LeaseError::NotAnnounced);
        }
        entry.readers += 1;
        Ok(ReadPin { table: self, lease })
    }

    /// Ends a lease after its last read and lets its blocks go. On an error what was read does
    /// not count.
    pub fn finish(&self, now: Instant, lease: Lease) -> Result<(), LeaseError> {
        let ended = {
            let mut entries = self.entries.lock();
            let entry = alive(&mut entries, now, lease)?;
            if entry.readers > 0 {
                entry.revoked = true;
                return Err(LeaseError::BeingRead);
            }
            entries.remove(&lease.id)
        };
        drop(ended);
        Ok(())
    }

    /// Ends a lease because its work was cancelled; its blocks go with `collect`.
    pub fn revoke(&self, id: LeaseId) {
        if let Some(entry) = self.entries.lock().get_mut(&id) {
            entry.revoked = true;
        }
    }

    /// Lets go of what has ended and is past its grace; returns how many leases that were.
    /// Revoked ones need no grace: their reader is gone.
    pub fn collect(&self, now: Instant) -> usize {
        let grace = self.limits.grace;
        let is_over =
            |entry: &Entry| entry.readers == 0 && (entry.revoked || now >= entry.ends + grace);
        let mut entries = self.entries.lock();
        let over: Vec<_> = entries.extract_if(|_, entry| is_over(entry)).collect();
        drop(entries);
        over.len()
    }
}

/// A read under way. Dropping it ends the read, also where a task is cancelled or panics.
#[must_use = "the blocks are pinned only while this lives"]
pub struct ReadPin<'a> {
    table: &'a LeaseTable,
    lease: Lease,
}

impl ReadPin<'_> {
    /// Whether the lease has lasted until now. Errors: how it ended; what was read does not count.
    pub fn check(&self, now: Instant) -> Result<(), LeaseError> {
        alive(&mut self.table.entries.lock(), now, self.lease).map(|_| ())
    }
}

impl Drop for ReadPin<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.table.entries.lock().get_mut(&self.lease.id) {
            entry.readers -= 1;
        }
    }
}

fn alive(
    entries: &mut HashMap<LeaseId, Entry>,
    now: Instant,
    lease: Lease,
) -> Result<&mut Entry, LeaseError> {
    let entry = entries.get_mut(&lease.id).ok_or(LeaseError::Unknown)?;
    if entry.capability != lease.capability || entry.revoked {
        return Err(LeaseError::Unknown);
    }
    if now >= entry.ends {
        return Err(LeaseError::Expired);
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> LeaseTable {
        let second = Duration::from_secs(1);
        LeaseTable::new(LeaseLimits {
            duration: 10 * second,
            cap: 25 * second,
            grace: second,
            leases_max: 2,
        })
    }

    fn at(start: Instant, seconds: f32) -> Instant {
        start + Duration::from_secs_f32(seconds)
    }

    /// A lease, and a count of 2 that falls to 1 when its blocks are let go.
    fn grant(table: &LeaseTable, start: Instant) -> (Lease, Arc<()>) {
        let blocks = Arc::new(());
        (table.grant(start, blocks.clone()).unwrap(), blocks)
    }

    #[test]
    fn a_finished_lease_lets_its_blocks_go_once() {
        let (table, start) = (table(), Instant::now());
        let (lease, blocks) = grant(&table, start);
        table.announce(lease.id, &[3, 4]);
        assert_eq!(table.read(start, lease, &[4], || "bytes"), Ok("bytes"));
        assert_eq!(Arc::strong_count(&blocks), 2);
        assert_eq!(table.finish(at(start, 9.9), lease), Ok(()));
        assert_eq!(Arc::strong_count(&blocks), 1);
        assert_eq!(table.finish(at(start, 9.9), lease), Err(LeaseError::Unknown));
        assert_eq!(table.collect(at(start, 99.0)), 0);
    }

    #[test]
    fn only_announced_blocks_and_the_right_capability_read() {
        let (table, start) = (table(), Instant::now());
        let (lease, _blocks) = grant(&table, start);
        assert_eq!(table.read(start, lease, &[3], || ()), Err(LeaseError::NotAnnounced));
        let forged = Lease { capability: Capability([0; 16]), ..lease };
        assert_eq!(table.read(start, forged, &[], || ()), Err(LeaseError::Unknown));
        assert_eq!(table.finish(start, forged), Err(LeaseError::Unknown));
        assert_eq!(table.finish(start, lease), Ok(()));
    }

    #[test]
    fn an_expired_lease_is_invalid_at_once_and_collected_after_its_grace() {
        let (table, start) = (table(), Instant::now());
        let (lease, blocks) = grant(&table, start);
        assert_eq!(table.finish(at(start, 10.0), lease), Err(LeaseError::Expired));
        assert_eq!(table.collect(at(start, 10.5)), 0, "the grace");
        assert_eq!(Arc::strong_count(&blocks), 2);
        assert_eq!(table.collect(at(start, 11.0)), 1);
        assert_eq!(Arc::strong_count(&blocks), 1);
        assert!(table.is_empty());
    }

    #[test]
    fn renewals_extend_up_to_the_cap() {
        let (table, start) = (table(), Instant::now());
        let (lease, _blocks) = grant(&table, start);
        assert_eq!(table.renew(at(start, 9.0), lease), Ok(()));
        assert_eq!(table.renew(at(start, 18.0), lease), Ok(()));
        assert_eq!(table.renew(at(start, 24.0), lease), Ok(()), "up to 25 s");
        assert_eq!(table.renew(at(start, 25.0), lease), Err(LeaseError::Expired));
    }

    #[test]
    fn a_read_under_way_keeps_a_revoked_lease_from_collection() {
        let (table, start) = (table(), Instant::now());
        let (lease, _blocks) = grant(&table, start);
        let collected = table.read(start, lease, &[], || {
            table.revoke(lease.id);
            table.collect(at(start, 99.0))
        });
        assert_eq!(collected, Ok(0));
        assert_eq!(table.collect(start), 1);
    }

    #[test]
    fn finishing_during_a_read_does_not_let_the_blocks_go() {
        let (table, start) = (table(), Instant::now());
        let (lease, blocks) = grant(&table, start);
        let finished = table.read(start, lease, &[], || table.finish(start, lease));
        assert_eq!(finished, Ok(Err(LeaseError::BeingRead)));
        assert_eq!(Arc::strong_count(&blocks), 2);
        assert_eq!(table.collect(start), 1);
    }

    #[test]
    fn a_pin_outlives_the_end_of_its_lease_and_knows_of_it() {
        let (table, start) = (table(), Instant::now());
        let (lease, blocks) = grant(&table, start);
        let pin = table.pin(start, lease, [].into_iter()).unwrap();
        assert_eq!(pin.check(at(start, 9.0)), Ok(()));
        assert_eq!(pin.check(at(start, 10.0)), Err(LeaseError::Expired));
        assert_eq!(table.finish(start, lease), Err(LeaseError::BeingRead));
        assert_eq!(pin.check(start), Err(LeaseError::Unknown));
        assert_eq!(table.collect(at(start, 99.0)), 0, "pinned");
        drop(pin);
        assert_eq!(table.collect(start), 1);
        assert_eq!(Arc::strong_count(&blocks), 1);
    }

    #[test]
    fn grants_are_bounded() {
        let (table, start) = (table(), Instant::now());
        let _leases = (grant(&table, start), grant(&table, start));
        assert_eq!(table.grant(start, Arc::new(())).err(), Some(LeaseError::TooMany));
    }
}
