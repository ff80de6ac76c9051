//! Who is near whom: the hosts that workers are on, the spots of these at which prompts are computed (a GPU, a
//! process of the CPU), and which spots are closer to a reader than two processes of one host (one
//! process, one GPU, GPUs that reach each other). However many workers share a spot, a reader looks at it once.

use protocol::link::{self, TransferRate};
use protocol::v1::{Hardware, KvLink, Role, WorkerRegistration};

use crate::holders::Slot;
use crate::worker_table::WorkerEntry;

/// Spots remembered of one reader: no host has as many GPUs. Further ones count as any other process of the
/// host.
const NEIGHBOURS_MAX: usize = 64;

/// Where workers are.
#[derive(Default)]
pub struct Near {
    /// By number; one without workers is free.
    hosts: Vec<Host>,
    /// Likewise.
    spots: Vec<Spot>,
    /// By the reader's slot.
    neighbours: Vec<Vec<Neighbour>>,
}

#[derive(Default)]
struct Host {
    id: Vec<u8>,
    slots: Vec<Slot>,
}

/// Where prefill workers compute that are equally close to each reader.
#[derive(Default)]
struct Spot {
    host: u16,
    hardware: Hardware,
    workers: usize,
}

/// Where a worker is, by numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whereabouts {
    /// Of its host; absent where that is not known.
    pub host: Option<u16>,
    /// Of a prefill worker's spot.
    pub spot: Option<u16>,
}

/// A spot that is near a worker which reads from there.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour {
    /// Which.
    pub spot: u16,
    /// What lies between.
    pub link: KvLink,
    /// What that promises.
    pub promised: TransferRate,
}

impl Near {
    /// A worker is there.
    pub fn add<'a>(
        &mut self,
        slot: Slot,
        registration: &WorkerRegistration,
        entry: impl Fn(Slot) -> Option<&'a WorkerEntry>,
    ) -> Whereabouts {
        let hardware = registration.hardware.as_ref();
        let place = hardware.and_then(|hardware| hardware.place.as_ref());
        let id = place.map(|place| &place.host_id).filter(|id| !id.is_empty());
        let host = id.and_then(|id| self.host_of(id));
        let Some((host, hardware)) = host.zip(hardware) else { return Whereabouts::default() };
        let spot = match registration.role() {
            Role::Prefill => self.add_to_spot(host, hardware, entry),
            _ => {
                self.add_reader(slot, host, hardware);
                None
            }
        };
        self.hosts[host as usize].slots.push(slot);
        Whereabouts { host: Some(host), spot }
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

    fn add_to_spot<'a>(
        &mut self,
        host: u16,
        hardware: &Hardware,
        entry: impl Fn(Slot) -> Option<&'a WorkerEntry>,
    ) -> Option<u16> {
        let hardware = hardware.spot();
        let is_it =
            |spot: &Spot| spot.workers > 0 && spot.host == host && spot.hardware == hardware;
        if let Some(known) = self.spots.iter().position(is_it) {
            self.spots[known].workers += 1;
            return u16::try_from(known).ok();
        }
        let free = self.spots.iter().position(|spot| spot.workers == 0);
        let number = u16::try_from(free.unwrap_or(self.spots.len())).ok()?;
        if free.is_none() {
            self.spots.push(Spot::default());
        }
        self.spots[number as usize] = Spot { host, hardware, workers: 1 };
        let others = std::mem::take(&mut self.hosts[host as usize].slots);
        for other in others.iter().copied() {
            let Some(theirs) = entry(other).map(|entry| &entry.registration) else { continue };
            if let (true, Some(reading)) = (theirs.role() != Role::Prefill, &theirs.hardware) {
                self.connect(other, reading, number);
            }
        }
        self.hosts[host as usize].slots = others;
        Some(number)
    }

    fn add_reader(&mut self, slot: Slot, host: u16, reading: &Hardware) {
        for number in 0..self.spots.len() {
            let Spot { host: its, workers, .. } = self.spots[number];
            if its == host && workers > 0 {
                self.connect(slot, reading, number as u16);
            }
        }
    }

    fn connect(&mut self, reader: Slot, reading: &Hardware, spot: u16) {
        let computing = &self.spots[spot as usize].hardware;
        let Some((link, promised)) = link::close(reading, computing) else { return };
        let at = reader as usize;
        if self.neighbours.len() <= at {
            self.neighbours.resize_with(at + 1, Vec::new);
        }
        if self.neighbours[at].len() < NEIGHBOURS_MAX {
            self.neighbours[at].push(Neighbour { spot, link, promised });
        }
    }

    /// A worker is gone from where it was.
    pub fn remove(&mut self, slot: Slot, was: Whereabouts) {
        if let Some(of_slot) = self.neighbours.get_mut(slot as usize) {
            of_slot.clear();
        }
        let Some(host) = was.host.and_then(|number| self.hosts.get_mut(number as usize)) else {
            return;
        };
        host.slots.retain(|other| *other != slot);
        let Some(number) = was.spot else { return };
        let Some(spot) = self.spots.get_mut(number as usize) else { return };
        spot.workers -= 1;
        if spot.workers > 0 {
            return;
        }
        for other in &host.slots {
            if let Some(of_other) = self.neighbours.get_mut(*other as usize) {
                of_other.retain(|neighbour| neighbour.spot != number);
            }
        }
    }

    /// Spots near a worker.
    pub fn neighbours(&self, slot: Slot) -> &[Neighbour] {
        self.neighbours.get(slot as usize).map_or(&[], Vec::as_slice)
    }

    /// Numbers of hosts are below this.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Numbers of spots are below this.
    pub fn spots(&self) -> usize {
        self.spots.len()
    }
}
