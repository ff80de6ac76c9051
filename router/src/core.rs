//! The decision.

use std::collections::{BTreeMap, HashMap, HashSet};

use protocol::v1::{self, Role};
use protocol::{BlockHash, WorkerLife, hashes_from_bytes};

use crate::choice::{Choice, Route, best};
use crate::holders::Slot;
use crate::pool::Pool;
use crate::prefix_index::{Events, PrefixIndex, Sync};
use crate::question::{NoRoute, Question};
use crate::worker_table::{Time, WorkerEntry};
use crate::workers::Workers;

/// All that routers know. Synchronous; the time is passed in.
#[derive(Default)]
pub struct Core {
    workers: Workers,
    /// By model and numerics id: the workers that may pair.
    pools: HashMap<String, BTreeMap<String, Pool>>,
    index: PrefixIndex,
}

impl Core {
    /// A worker is there, or drains now. Older lives of it are gone then.
    pub fn register(&mut self, mut registration: v1::WorkerRegistration, now: Time) {
        registration.hardware.iter_mut().for_each(v1::Hardware::truncate);
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        if !self.supersede(&life) {
            return;
        }
        if let Some(slot) = self.workers.slot(&life) {
            // Nothing else changes in a life.
            let draining = registration.draining;
            self.workers.change(slot, |entry| entry.registration.draining = draining);
            return;
        }
        let v1::WorkerRegistration { model, numerics_id, kv_blocks, .. } = registration.clone();
        let equals =
            self.pools.get(&model).and_then(|of_model| of_model.get(&numerics_id)?.latency);
        let role = registration.role();
        let entry = WorkerEntry::new(registration, equals, now);
        let Some(slot) = self.workers.add(life.clone(), entry) else {
            tracing::warn!(worker = %life.id, "too many workers, leaving it out");
            return;
        };
        self.index.follow(slot, kv_blocks as usize);
        let pool = self.pools.entry(model).or_default().entry(numerics_id).or_default();
        let of_role = if role == Role::Prefill { &mut pool.prefill } else { &mut pool.decode };
        let is_before = |other: &Slot| self.workers.life(*other).is_some_and(|other| *other < life);
        of_role.insert(of_role.partition_point(is_before), slot);
    }

    /// Forgets lives before this one. False if a later one is known.
    fn supersede(&mut self, life: &WorkerLife) -> bool {
        // There is one at most.
        match self.workers.latest(life) {
            Some(known) if known > life => false,
            Some(known) if known < life => {
                let older = known.clone();
                tracing::info!(worker = %older.id, "it lives again, forgetting its life before");
                self.remove(&older);
                true
            }
            _ => true,
        }
    }

    /// Prefill workers that hand their prompts to nobody: no decode worker has their numerics id, as where
    /// all decode workers are on CPUs and they on GPUs.
    pub fn unpaired_prefill_workers(&self) -> usize {
        let pools = self.pools.values().flat_map(|of_model| of_model.values());
        pools.filter(|pool| pool.decode.is_empty()).map(|pool| pool.prefill.len()).sum()
    }

    /// All workers known.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerLife> {
        self.workers.lives()
    }

    /// A worker is gone.
    pub fn remove(&mut self, worker: &WorkerLife) {
        let Some((slot, entry)) = self.workers.remove(worker) else { return };
        self.index.forget(slot);
        let v1::WorkerRegistration { model, numerics_id, .. } = entry.registration;
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
        let Some(slot) = self.workers.slot(&life) else { return Sync::Kept };
        let Some(entry) = self.workers.entry(slot) else { return Sync::Kept };
        let v1::WorkerRegistration { model, numerics_id, .. } = &entry.registration;
        let pool = self.pools.get_mut(model).and_then(|of_model| of_model.get_mut(numerics_id));
        let equals = pool.as_ref().and_then(|pool| pool.latency);
        self.workers.change(slot, |entry| entry.report(&load, equals, now));
        if let (Some(pool), Some(measured)) = (pool, load.latency) {
            pool.learn(measured);
        }
        self.index.expect(slot, load.kv_sequence, now)
    }

    /// A worker's prefix cache changed.
    pub fn kv_events(&mut self, events: &v1::KvEvents) -> Sync {
        let life = WorkerLife::new(&events.worker_id, events.incarnation);
        let Some(slot) = self.workers.slot(&life) else { return Sync::Kept };
        let events = Events {
            sequence: events.sequence,
            stored: hashes_from_bytes(&events.stored).collect(),
            removed: hashes_from_bytes(&events.removed).collect(),
        };
        self.index.apply(slot, events)
    }

    /// What a worker's prefix cache held before the events of number `next_sequence`.
    pub fn kv_snapshot(
        &mut self,
        worker: &WorkerLife,
        next_sequence: u64,
        hashes: Vec<BlockHash>,
    ) -> Sync {
        let Some(slot) = self.workers.slot(worker) else { return Sync::Kept };
        self.index.restore(slot, next_sequence, hashes)
    }

    /// What a worker said of itself; nothing if it is gone.
    pub fn registration(&self, worker: &WorkerLife) -> Option<&v1::WorkerRegistration> {
        let entry = self.workers.entry(self.workers.slot(worker)?)?;
        Some(&entry.registration)
    }

    /// What is known of a worker's prefix cache; nothing while a snapshot is awaited.
    pub fn cached_blocks(&self, worker: &WorkerLife) -> Option<&HashSet<BlockHash>> {
        self.index.blocks(self.workers.slot(worker)?)
    }

    /// Someone found a worker dead, silent or hung: it is passed over for a while. Returns whether that
    /// is news.
    pub fn suspect(&mut self, worker: &WorkerLife, now: Time) -> bool {
        let Some(slot) = self.workers.slot(worker) else { return false };
        let mut is_news = false;
        self.workers.change(slot, |entry| is_news = entry.suspect(now));
        if is_news {
            tracing::info!(worker = %worker.id, "suspected, passing it over for a while");
        }
        is_news
    }

    /// Another router gave away requests.
    pub fn dispatched_elsewhere(&mut self, dispatches: &[v1::Dispatch], now: Time) {
        for dispatch in dispatches {
            let worker = WorkerLife::new(&dispatch.worker_id, dispatch.worker_incarnation);
            let Some(slot) = self.workers.slot(&worker) else { continue };
            let (us, tokens) = (dispatch.prefill_us, dispatch.prompt_tokens.into());
            self.workers.change(slot, |entry| entry.dispatch_elsewhere(us, tokens, now));
        }
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
            let Some(slot) = self.workers.slot(worker) else { continue };
            let tokens = question.prompt_tokens as u64;
            self.workers.change(slot, |entry| entry.dispatch(prefill_us, tokens, now));
        }
        Ok(route)
    }

    /// The pools that the question names.
    fn choices<'a>(&'a self, question: &'a Question, now: Time) -> Vec<(&'a str, Choice<'a>)> {
        let Some(of_model) = self.pools.get(&question.model) else { return Vec::new() };
        let slot = |worker| self.workers.slot(worker);
        let excluded: Vec<Slot> = question.excluded.iter().filter_map(slot).collect();
        let choice = |(numerics_id, hashes): &'a (String, Vec<BlockHash>)| {
            let pool = of_model.get(numerics_id)?;
            let slots = self.workers.gauges().len();
            let cached_blocks = self.index.matched_blocks(hashes, slots);
            let (workers, sizes) = (&self.workers, question.sizes());
            let excluded = excluded.clone();
            Some((&**numerics_id, Choice { workers, pool, cached_blocks, sizes, now, excluded }))
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
        let drains = |slot: &Slot| self.workers.gauges()[*slot as usize].is_draining;
        if slots.all(drains) { NoRoute::AllDrain } else { NoRoute::AllExcluded }
    }
}

#[cfg(test)]
mod tests;
