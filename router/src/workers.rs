//! All workers, by slot and by name.

use std::collections::BTreeMap;

use protocol::{Incarnation, WorkerLife};

use crate::gauge::Gauge;
use crate::holders::Slot;
use crate::near::{Near, Neighbour};
use crate::worker_table::WorkerEntry;

/// Workers known at once; further ones are left out. A slot can name as many.
const WORKERS_MAX: usize = 16_384;

/// See the module's description.
#[derive(Default)]
pub struct Workers {
    slots: BTreeMap<WorkerLife, Slot>,
    entries: Vec<Option<(WorkerLife, WorkerEntry)>>,
    gauges: Vec<Gauge>,
    near: Near,
}

impl Workers {
    /// Adds a worker that is not there. None: there are too many.
    pub fn add(&mut self, life: WorkerLife, mut entry: WorkerEntry) -> Option<Slot> {
        if self.slots.len() >= WORKERS_MAX {
            return None;
        }
        let free = self.entries.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.entries.push(None);
            self.gauges.push(Gauge::default());
            self.entries.len() - 1
        });
        let known = |slot: Slot| self.entries.get(slot as usize)?.as_ref().map(|(_, entry)| entry);
        entry.whereabouts = self.near.add(at as Slot, &entry.registration, known);
        self.gauges[at] = entry.gauge();
        self.entries[at] = Some((life.clone(), entry));
        self.slots.insert(life, at as Slot);
        Some(at as Slot)
    }

    /// Removes a worker, if it is there.
    pub fn remove(&mut self, life: &WorkerLife) -> Option<(Slot, WorkerEntry)> {
        let slot = self.slots.remove(life)?;
        self.gauges[slot as usize] = Gauge::default();
        let (_, entry) = self.entries[slot as usize].take()?;
        self.near.remove(slot, entry.whereabouts);
        Some((slot, entry))
    }

    /// Where a worker is.
    pub fn slot(&self, life: &WorkerLife) -> Option<Slot> {
        self.slots.get(life).copied()
    }

    /// The latest known life of the same worker.
    pub fn latest(&self, life: &WorkerLife) -> Option<&WorkerLife> {
        let first = WorkerLife { incarnation: Incarnation(0), ..life.clone() };
        let last = WorkerLife { incarnation: Incarnation(u64::MAX), ..life.clone() };
        self.slots.range(first..=last).next_back().map(|(latest, _)| latest)
    }

    /// All of them, in the order of their names.
    pub fn lives(&self) -> impl ExactSizeIterator<Item = &WorkerLife> {
        self.slots.keys()
    }

    /// Who is in a slot.
    pub fn life(&self, slot: Slot) -> Option<&WorkerLife> {
        self.entries.get(slot as usize)?.as_ref().map(|(life, _)| life)
    }

    /// What is known of the one in a slot.
    pub fn entry(&self, slot: Slot) -> Option<&WorkerEntry> {
        self.entries.get(slot as usize)?.as_ref().map(|(_, entry)| entry)
    }

    /// Changes what is known of the one in a slot.
    pub fn change(&mut self, slot: Slot, change: impl FnOnce(&mut WorkerEntry)) {
        if let Some(Some((_, entry))) = self.entries.get_mut(slot as usize) {
            change(entry);
            self.gauges[slot as usize] = entry.gauge();
        }
    }

    /// Spots near the one in a slot.
    pub fn neighbours(&self, slot: Slot) -> &[Neighbour] {
        self.near.neighbours(slot)
    }

    /// The numbers of workers' hosts are below this.
    pub fn hosts(&self) -> usize {
        self.near.hosts()
    }

    /// The numbers of prefill workers' spots are below this.
    pub fn spots(&self) -> usize {
        self.near.spots()
    }

    /// All at a glance, by slot.
    pub fn gauges(&self) -> &[Gauge] {
        &self.gauges
    }
}
