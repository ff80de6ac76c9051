//! Who is near whom: the hosts that workers are on, and the pairs that are closer than two processes of one
//! host (one process, one GPU, GPUs that reach each other).

use protocol::link::{self, TransferRate};
use protocol::v1::{KvLink, Role, WorkerRegistration};

use crate::holders::Slot;
use crate::worker_table::WorkerEntry;

/// Neighbours remembered of one worker; further ones count as any other process of the host.
const NEIGHBOURS_MAX: usize = 64;

/// Where workers are, by slot.
#[derive(Default)]
pub struct Near {
    /// By number; one without workers is free.
    hosts: Vec<Host>,
    neighbours: Vec<Vec<Neighbour>>,
}

#[derive(Default)]
struct Host {
    id: Vec<u8>,
    slots: Vec<Slot>,
}

/// A prefill worker that is near a worker which reads from it.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour {
    /// Which.
    pub slot: Slot,
    /// What lies between.
    pub link: KvLink,
    /// What that promises.
    pub promised: TransferRate,
}

impl Near {
    /// A worker is there. Returns the number of its host, if that is known.
    pub fn add<'a>(
        &mut self,
        slot: Slot,
        registration: &WorkerRegistration,
        entry: impl Fn(Slot) -> Option<&'a WorkerEntry>,
    ) -> Option<u16> {
        let place = registration.hardware.as_ref()?.place.as_ref()?;
        if place.host_id.is_empty() {
            return None;
        }
        let number = self.host_of(&place.host_id)?;
        let others = std::mem::take(&mut self.hosts[number as usize].slots);
        for other in others.iter().copied() {
            let Some(theirs) = entry(other).map(|entry| &entry.registration) else { continue };
            self.connect((slot, registration), (other, theirs));
            self.connect((other, theirs), (slot, registration));
        }
        self.hosts[number as usize].slots = others;
        self.hosts[number as usize].slots.push(slot);
        Some(number)
    }

    fn host_of(&mut self, id: &[u8]) -> Option<u16> {
        let known = self.hosts.iter().position(|host| host.id == id && !host.slots.is_empty());
        let at = known.or_else(|| self.hosts.iter().position(|host| host.slots.is_empty()));
        let at = at.unwrap_or_else(|| {
            self.hosts.push(Host::default());
            self.hosts.len() - 1
        });
        self.hosts[at].id = id.to_vec();
        u16::try_from(at).ok()
    }

    fn connect(
        &mut self,
        (reader, reading): (Slot, &WorkerRegistration),
        (source, computing): (Slot, &WorkerRegistration),
    ) {
        let may_pair = computing.role() == Role::Prefill
            && reading.role() != Role::Prefill
            && reading.model == computing.model
            && reading.numerics_id == computing.numerics_id;
        let hardware = reading.hardware.as_ref().zip(computing.hardware.as_ref());
        let Some((ours, theirs)) = hardware.filter(|_| may_pair) else { return };
        let Some((link, promised)) = link::close(ours, theirs) else { return };
        let at = reader as usize;
        if self.neighbours.len() <= at {
            self.neighbours.resize_with(at + 1, Vec::new);
        }
        if self.neighbours[at].len() < NEIGHBOURS_MAX {
            self.neighbours[at].push(Neighbour { slot: source, link, promised });
        }
    }

    /// A worker is gone.
    pub fn remove(&mut self, slot: Slot, host: Option<u16>) {
        if let Some(of_slot) = self.neighbours.get_mut(slot as usize) {
            of_slot.clear();
        }
        let Some(host) = host.and_then(|number| self.hosts.get_mut(number as usize)) else {
            return;
        };
        host.slots.retain(|other| *other != slot);
        for other in &host.slots {
            if let Some(of_other) = self.neighbours.get_mut(*other as usize) {
                of_other.retain(|neighbour| neighbour.slot != slot);
            }
        }
    }

    /// Prefill workers near a worker.
    pub fn neighbours(&self, slot: Slot) -> &[Neighbour] {
        self.neighbours.get(slot as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether any worker has some.
    pub fn has_neighbours(&self) -> bool {
        self.neighbours.iter().any(|of_slot| !of_slot.is_empty())
    }

    /// Numbers of hosts are below this.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }
}
