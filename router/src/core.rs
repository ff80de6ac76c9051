//! The decision.

use std::collections::{BTreeMap, HashMap, HashSet};

use protocol::v1::{self, Role};
use protocol::{BlockHash, Incarnation, WorkerLife, hashes_from_bytes};

use crate::choice::{Choice, Pool, Route, Slots, best};
use crate::prefix_index::{Events, PrefixIndex, Slot, Sync};
use crate::question::{NoRoute, Question};
use crate::worker_table::{Time, WorkerEntry};

/// Workers known at once; further ones are left out.
const WORKERS_MAX: usize = 16_384;

/// All that routers know. Synchronous; the time is passed in.
#[derive(Default)]
pub struct Core {
    slots: Slots,
    lives: BTreeMap<WorkerLife, Slot>,
    /// By model and numerics id: the workers that may pair.
    pools: HashMap<String, BTreeMap<String, Pool>>,
    index: PrefixIndex,
}

impl Core {
    /// A worker is there, or drains now. Older lives of it are gone then.
    pub fn register(&mut self, registration: v1::WorkerRegistration, now: Time) {
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        if !self.supersede(&life) {
            return;
        }
        if let Some(entry) = self.entry_mut(&life) {
            // Nothing else changes in a life.
            entry.registration.draining = registration.draining;
            return;
        }
        if self.lives.len() >= WORKERS_MAX {
            tracing::warn!(worker = %life.id, "too many workers, leaving it out");
            return;
        }
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.index.follow(slot as Slot, registration.kv_blocks as usize);
        self.lives.insert(life.clone(), slot as Slot);
        let of_model = self.pools.entry(registration.model.clone()).or_default();
        let pool = of_model.entry(registration.numerics_id.clone()).or_default();
        let (role, equals) = (registration.role(), pool.latency);
        self.slots[slot] = Some((life.clone(), WorkerEntry::new(registration, equals, now)));
        let workers = if role == Role::Prefill { &mut pool.prefill } else { &mut pool.decode };
        let is_before = |other: &Slot| {
            self.slots[*other as usize].as_ref().is_some_and(|(other, _)| *other < life)
        };
        workers.insert(workers.partition_point(is_before), slot as Slot);
    }

    /// Forgets lives before this one. False if a later one is known.
    fn supersede(&mut self, life: &WorkerLife) -> bool {
        let first = WorkerLife { incarnation: Incarnation(0), ..life.clone() };
        let last = WorkerLife { incarnation: Incarnation(u64::MAX), ..life.clone() };
        // There is one at most.
        match self.lives.range(first..=last).next_back() {
            Some((known, _)) if known > life => false,
            Some((known, _)) if known < life => {
                let older = known.clone();
                tracing::info!(worker = %older.id, "it lives again, forgetting its life before");
                self.remove(&older);
                true
            }
            _ => true,
        }
    }

    /// All workers known.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerLife> {
        self.lives.keys()
    }

    /// A worker is gone.
    pub fn remove(&mut self, worker: &WorkerLife) {
        let Some(slot) = self.lives.remove(worker) else { return };
        self.index.forget(slot);
        let Some((_, entry)) = self.slots[slot as usize].take() else { return };
        let v1::WorkerRegistration { model, numerics_id, .. } = *entry.registration;
        let Some(of_model) = self.pools.get_mut(&model) else { return };
        of_model.retain(|id, pool| {
            if *id == numerics_id {
                pool.decode.retain(|other| *other != slot);
                pool.prefill.retain(|other| *other != slot);
            }
            !(pool.decode.is_empty() && pool.prefill.is_empty())
        });
        if of_model.is_empty() {
            self.pools.remove(&model);
        }
    }

    /// A worker says how busy it is. Reports of unknown lives are late ones and left out.
    pub fn report(&mut self, mut load: v1::LoadReport, now: Time) -> Sync {
        if load.latency.is_some_and(|latency| !latency.is_sound()) {
            tracing::warn!(worker = load.worker_id, "its measured step times make no sense");
            load.latency = None;
        }
        let life = WorkerLife::new(&load.worker_id, load.incarnation);
        let Some(slot) = self.lives.get(&life).copied() else { return Sync::Kept };
        let Some((_, entry)) = &mut self.slots[slot as usize] else { return Sync::Kept };
        let v1::WorkerRegistration { model, numerics_id, .. } = entry.registration.as_ref();
        let pool = self.pools.get_mut(model).and_then(|of_model| of_model.get_mut(numerics_id));
        let kv_sequence = load.kv_sequence;
        let equals = pool.as_ref().and_then(|pool| pool.latency);
        entry.report(&load, equals, now);
        if let (Some(pool), Some(measured)) = (pool, load.latency) {
            pool.learn(measured);
        }
        self.index.expect(slot, kv_sequence, now)
    }

    /// A worker's prefix cache changed.
    pub fn kv_events(&mut self, events: &v1::KvEvents) -> Sync {
        let life = WorkerLife::new(&events.worker_id, events.incarnation);
        let Some(slot) = self.lives.get(&life) else { return Sync::Kept };
        let events = Events {
            sequence: events.sequence,
            stored: hashes_from_bytes(&events.stored).collect(),
            removed: hashes_from_bytes(&events.removed).collect(),
        };
        self.index.apply(*slot, events)
    }

    /// What a worker's prefix cache held before the events of number `next_sequence`.
    pub fn kv_snapshot(
        &mut self,
        worker: &WorkerLife,
        next_sequence: u64,
        hashes: Vec<BlockHash>,
    ) -> Sync {
        let Some(slot) = self.lives.get(worker) else { return Sync::Kept };
        self.index.restore(*slot, next_sequence, hashes)
    }

    /// What a worker said of itself; nothing if it is gone.
    pub fn registration(&self, worker: &WorkerLife) -> Option<&v1::WorkerRegistration> {
        let slot = self.lives.get(worker)?;
        let (_, entry) = self.slots[*slot as usize].as_ref()?;
        Some(&entry.registration)
    }

    /// What is known of a worker's prefix cache; nothing while a snapshot is awaited.
    pub fn cached_blocks(&self, worker: &WorkerLife) -> Option<&HashSet<BlockHash>> {
        self.index.blocks(*self.lives.get(worker)?)
    }

    /// Someone found a worker dead, silent or hung: it is passed over for a while.
    pub fn suspect(&mut self, worker: &WorkerLife, now: Time) {
        if let Some(entry) = self.entry_mut(worker) {
            entry.suspect(now);
        }
    }

    /// Another router gave away requests.
    pub fn dispatched_elsewhere(&mut self, dispatches: &[v1::Dispatch], now: Time) {
        for dispatch in dispatches {
            let worker = WorkerLife::new(&dispatch.worker_id, dispatch.worker_incarnation);
            if let Some(entry) = self.entry_mut(&worker) {
                let tokens = dispatch.prompt_tokens.into();
                entry.dispatch_elsewhere(dispatch.prefill_us, tokens, now);
            }
        }
    }

    fn entry_mut(&mut self, worker: &WorkerLife) -> Option<&mut WorkerEntry> {
        let slot = self.lives.get(worker)?;
        self.slots[*slot as usize].as_mut().map(|(_, entry)| entry)
    }

    /// Chooses the pair (or the one worker) with the lowest predicted cost, and counts the
    /// request against it. Prefill and decode workers pair within one numerics id.
    ///
    /// Passed over, unless there is no one else: workers that are suspected or not heard of lately,
    /// and prefill workers as owners of a request. Never chosen: those that drain or are excluded.
    pub fn route(&mut self, question: &Question, now: Time) -> Result<Route, NoRoute> {
        let pools = self.choices(question, now);
        let route = best(&pools, question.preferred_numerics_id.as_str());
        let route = route.ok_or_else(|| self.why_none(question))?;
        for (worker, prefill_us) in route.shares() {
            if let Some(entry) = self.entry_mut(worker) {
                entry.dispatch(prefill_us, question.prompt_tokens as u64, now);
            }
        }
        Ok(route)
    }

    /// The pools that the question names.
    fn choices<'a>(&'a self, question: &'a Question, now: Time) -> Vec<(&'a str, Choice<'a>)> {
        let Some(of_model) = self.pools.get(&question.model) else { return Vec::new() };
        let slot = |worker| self.lives.get(worker).copied();
        let excluded: Vec<Slot> = question.excluded.iter().filter_map(slot).collect();
        let choice = |(numerics_id, hashes): &'a (String, Vec<BlockHash>)| {
            let pool = of_model.get(numerics_id)?;
            let mut cached_blocks = vec![0; self.slots.len()];
            for (slot, blocks) in self.index.matched_blocks(hashes) {
                cached_blocks[slot as usize] = blocks;
            }
            let (slots, sizes, excluded) = (&self.slots, question.sizes(), excluded.clone());
            Some((&**numerics_id, Choice { slots, pool, cached_blocks, sizes, now, excluded }))
        };
        question.prompt_blocks.iter().filter_map(choice).collect()
    }

    fn why_none(&self, question: &Question) -> NoRoute {
        let of_model = self.pools.get(&question.model);
        let serving = question.prompt_blocks.iter().filter_map(|(id, _)| of_model?.get(id));
        let mut slots = serving.flat_map(|pool| pool.decode.iter().chain(&pool.prefill)).peekable();
        if slots.peek().is_none() {
            return NoRoute::NoWorker;
        }
        let drains = |slot: &Slot| {
            self.slots[*slot as usize]
                .as_ref()
                .is_some_and(|(_, entry)| entry.registration.draining)
        };
        if slots.all(drains) { NoRoute::AllDrain } else { NoRoute::AllExcluded }
    }
}

#[cfg(test)]
mod tests;
