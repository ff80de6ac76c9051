//! The decision.

use std::collections::{BTreeMap, HashMap, HashSet};

use protocol::v1::{self, Role};
use protocol::{BlockHash, WorkerLife, hashes_from_bytes};

use crate::choice::{Choice, Pool, Route, Slots, cheaper};
use crate::cost::{self, Sizes};
use crate::prefix_index::{Events, PrefixIndex, Slot, Sync};
use crate::worker_table::{Time, WorkerEntry};

/// Workers known at once; further ones are left out.
const WORKERS_MAX: usize = 16_384;

/// A request, as far as routing is concerned.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Which model is to answer.
    pub model: String,
    /// The prompt's full blocks under each numerics id that serves the model.
    pub prompt_blocks: Vec<(String, Vec<BlockHash>)>,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Length of the answer at most.
    pub max_tokens: usize,
    /// Lives of workers that it must not go to.
    pub excluded: Vec<WorkerLife>,
}

/// No worker can take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No worker serves this model.
    #[error("no worker serves this model")]
    NoWorker,
    /// There are workers, and none that the request may go to.
    #[error("all workers that serve this model were excluded")]
    AllExcluded,
}

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
    /// A worker is there.
    pub fn register(&mut self, registration: v1::WorkerRegistration, now: Time) {
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        if self.lives.contains_key(&life) {
            // A life's registration does not change.
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

    /// Chooses the pair (or the one worker) with the lowest predicted cost, and counts the
    /// request against it. Prefill and decode workers pair within one numerics id. Workers not
    /// heard of lately are passed over, unless all of them are.
    pub fn route(&mut self, question: &Question, now: Time) -> Result<Route, NoRoute> {
        let best = self.best(question, now, true).or_else(|| self.best(question, now, false));
        let route = best.ok_or_else(|| self.why_none(question))?;
        self.count(&route, question, now);
        Ok(route)
    }

    fn why_none(&self, question: &Question) -> NoRoute {
        let serves = |worker: &WorkerLife| {
            self.registration(worker).is_some_and(|registered| registered.model == question.model)
        };
        match question.excluded.iter().any(serves) {
            true => NoRoute::AllExcluded,
            false => NoRoute::NoWorker,
        }
    }

    fn count(&mut self, route: &Route, question: &Question, now: Time) {
        let (sizes, tokens) = (question.sizes(), question.prompt_tokens as u64);
        let computing = route.prefill.as_ref().unwrap_or(&route.decode);
        if let Some(entry) = self.entry_mut(computing) {
            let cached_tokens = route.cached_blocks * entry.block_size();
            let prefill_us = cost::prefill_us(entry, sizes, cached_tokens);
            entry.dispatch(prefill_us, tokens, now);
        }
        if let (Some(_), Some(entry)) = (&route.prefill, self.entry_mut(&route.decode)) {
            entry.dispatch(0.0, tokens, now);
        }
    }

    fn entry_mut(&mut self, worker: &WorkerLife) -> Option<&mut WorkerEntry> {
        let slot = self.lives.get(worker)?;
        self.slots[*slot as usize].as_mut().map(|(_, entry)| entry)
    }

    fn best(&self, question: &Question, now: Time, only_fresh: bool) -> Option<Route> {
        let of_model = self.pools.get(&question.model)?;
        let pools = question
            .prompt_blocks
            .iter()
            .filter_map(|(numerics_id, hashes)| Some((of_model.get(numerics_id)?, hashes)));
        let slot = |worker| self.lives.get(worker).copied();
        let excluded: Vec<Slot> = question.excluded.iter().filter_map(slot).collect();
        let routes = pools.filter_map(|(pool, hashes)| {
            let mut cached_blocks = vec![0; self.slots.len()];
            for (slot, blocks) in self.index.matched_blocks(hashes) {
                cached_blocks[slot as usize] = blocks;
            }
            let sizes = question.sizes();
            let (slots, excluded) = (&self.slots, &excluded[..]);
            Choice { slots, cached_blocks, sizes, now, only_fresh, excluded }.in_pool(pool)
        });
        routes.reduce(cheaper)
    }
}

impl Question {
    fn sizes(&self) -> Sizes {
        Sizes { prompt: self.prompt_tokens, answer_max: self.max_tokens }
    }
}

#[cfg(test)]
mod tests {
    use protocol::v1::LatencyModel;

    use super::*;

    const NOW: Time = 60_000_000;

    /// A worker as the tables below describe it.
    #[derive(Clone, Default)]
    struct Worker {
        name: &'static str,
        prefill: bool,
        numerics_id: &'static str,
        model: &'static str,
        running: u32,
        waiting_tokens: u64,
        us_per_token: f32,
        step_us: f32,
        steps: u64,
        free_blocks: u32,
        cached_blocks: usize,
        silent: bool,
    }

    fn decode(name: &'static str) -> Worker {
        let (numerics_id, model) = ("n", "m");
        Worker {
            name,
            numerics_id,
            model,
            free_blocks: 1000,
            us_per_token: 100.0,
            step_us: 1000.0,
            steps: 1_000_000_000,
            ..Default::default()
        }
    }

    fn prefill(name: &'static str) -> Worker {
        Worker { prefill: true, ..decode(name) }
    }

    const PROMPT_TOKENS: usize = 1600;

    fn hash(block: usize) -> BlockHash {
        BlockHash([block as u8 + 1; 16])
    }

    fn question() -> Question {
        let hashes: Vec<BlockHash> = (0..PROMPT_TOKENS / 16).map(hash).collect();
        Question {
            model: "m".into(),
            prompt_blocks: vec![("n".into(), hashes.clone()), ("other".into(), hashes)],
            prompt_tokens: PROMPT_TOKENS,
            max_tokens: 100,
            excluded: Vec::new(),
        }
    }

    fn core(workers: &[Worker], now: Time) -> Core {
        let mut core = Core::default();
        for worker in workers {
            let role = if worker.prefill { Role::Prefill } else { Role::Decode };
            let registered = v1::WorkerRegistration {
                worker_id: worker.name.into(),
                role: role.into(),
                model: worker.model.into(),
                numerics_id: worker.numerics_id.into(),
                block_size: 16,
                kv_blocks: 1000,
                block_bytes: 1 << 16,
                max_num_batched_tokens: 512,
                ..Default::default()
            };
            let before = now - 10_000_000;
            core.register(registered, before);
            let load = v1::LoadReport {
                worker_id: worker.name.into(),
                running_sequences: worker.running,
                waiting_prompt_tokens: worker.waiting_tokens,
                free_blocks: worker.free_blocks,
                sequence_tokens: u64::from(worker.running) * 100,
                latency: Some(LatencyModel {
                    step_us: worker.step_us,
                    prefill_token_us: worker.us_per_token,
                    sequence_us: 100.0,
                    prefill_steps: worker.steps,
                    decode_steps: worker.steps,
                    ..Default::default()
                }),
                kv_sequence: 1,
                ..Default::default()
            };
            assert_eq!(core.report(load, if worker.silent { before } else { now }), Sync::Kept);
            let held: Vec<BlockHash> = (0..worker.cached_blocks).map(hash).collect();
            let events = v1::KvEvents {
                worker_id: worker.name.into(),
                stored: protocol::hashes_to_bytes(&held),
                ..Default::default()
            };
            assert_eq!(core.kv_events(&events), Sync::Kept);
        }
        core
    }

    /// Routes one request; `expected` is "decode" or "decode<-prefill".
    #[track_caller]
    fn check_route(workers: &[Worker], expected: &str) {
        let now = NOW;
        let route = core(workers, now).route(&question(), now).unwrap();
        let found = match &route.prefill {
            Some(prefill) => format!("{}<-{}", route.decode.id, prefill.id),
            None => route.decode.id.to_string(),
        };
        assert_eq!(found, expected, "{route:?}");
    }

    #[test]
    fn a_long_new_prompt_goes_to_a_prefill_worker() {
        check_route(&[decode("d"), prefill("p")], "d<-p");
        check_route(&[Worker { running: 9, ..decode("d") }, prefill("p")], "d<-p");
    }

    #[test]
    fn a_short_prompt_is_not_worth_a_handoff() {
        let now = NOW;
        let short = Question { prompt_tokens: 20, ..question() };
        let route = |workers: &[Worker]| core(workers, now).route(&short, now).unwrap();
        assert_eq!(route(&[decode("d"), prefill("p")]).prefill, None);
        let busy = Worker { running: 9, ..decode("d") };
        assert!(route(&[busy, prefill("p")]).prefill.is_some(), "nine streams would wait");
    }

    #[test]
    fn a_decision_explains_itself() {
        let now = NOW;
        let route = core(&[decode("d"), prefill("p")], now).route(&question(), now).unwrap();
        let explained = route.to_string();
        assert!(
            explained.starts_with("decode=d;prefill=p;cached_blocks=0;ttft_us="),
            "{explained}"
        );
        assert!(explained.contains(";otherwise=(decode=d;cached_blocks=0;ttft_us="), "{explained}");
    }

    #[test]
    fn without_prefill_workers_the_decode_worker_computes() {
        check_route(&[decode("d")], "d");
    }

    #[test]
    fn what_the_decode_worker_has_seen_stays_there() {
        let seen = Worker { cached_blocks: 90, ..decode("d") };
        check_route(&[seen.clone(), prefill("p")], "d");
        check_route(&[seen, Worker { cached_blocks: 99, ..prefill("p") }], "d<-p");
    }

    #[test]
    fn prefixes_attract_and_queues_repel() {
        let seen = Worker { cached_blocks: 80, ..prefill("q") };
        check_route(&[decode("d"), prefill("p"), seen.clone()], "d<-q");
        let busy = Worker { waiting_tokens: 50_000, ..seen };
        check_route(&[decode("d"), prefill("p"), busy], "d<-p");
    }

    #[test]
    fn faster_workers_are_preferred() {
        let fast = Worker { us_per_token: 10.0, ..prefill("q") };
        check_route(&[decode("d"), prefill("p"), fast], "d<-q");
    }

    #[test]
    fn a_worker_that_was_slow_in_few_steps_is_tried_again() {
        let slow = Worker { us_per_token: 150.0, ..prefill("p") };
        check_route(&[decode("d"), slow.clone()], "d");
        check_route(&[decode("d"), Worker { steps: 2, ..slow }], "d<-p");
    }

    #[test]
    fn streams_spread_over_decode_workers() {
        check_route(&[Worker { running: 5, ..decode("d") }, decode("e"), prefill("p")], "e<-p");
        let full = Worker { free_blocks: 3, ..decode("d") };
        check_route(&[full, Worker { running: 5, ..decode("e") }, prefill("p")], "e<-p");
    }

    #[test]
    fn pairs_share_their_numerics_id_and_model() {
        let other = Worker { numerics_id: "other", ..prefill("p") };
        check_route(&[decode("d"), other], "d");
        let other_model = Worker { model: "other", ..decode("a") };
        check_route(&[other_model, decode("d"), prefill("p")], "d<-p");
    }

    #[test]
    fn silent_workers_are_passed_over_unless_all_are_silent() {
        let silent = Worker { silent: true, ..decode("d") };
        check_route(&[silent.clone(), Worker { running: 50, ..decode("e") }], "e");
        check_route(&[silent], "d");
    }

    #[test]
    fn a_dispatch_counts_until_it_is_reported() {
        let now = NOW;
        let mut core = core(&[decode("d"), prefill("p"), prefill("q")], now);
        let chosen = |core: &mut Core| core.route(&question(), now).unwrap().prefill.unwrap();
        let (first, second) = (chosen(&mut core), chosen(&mut core));
        assert_eq!((first.id.as_str(), second.id.as_str()), ("p", "q"));
        let queue_us = |core: &mut Core, at| core.entry_mut(&first).unwrap().queue_us(at);
        assert_eq!(queue_us(&mut core, now), 164_000.0);
        assert_eq!(queue_us(&mut core, now + 165_000), 0.0, "164 were predicted");
        let report = v1::LoadReport { worker_id: "p".into(), ..Default::default() };
        assert_eq!(core.report(report, now + 1_000_000), Sync::Kept);
        assert_eq!(queue_us(&mut core, now + 1_000_000), 0.0);
    }

    #[test]
    fn nonsense_from_a_worker_neither_panics_nor_attracts() {
        let nonsense = [f32::NAN, f32::INFINITY, -1.0, f32::MAX];
        for us in nonsense {
            let mut core = core(&[decode("d"), decode("a")], NOW);
            let load = v1::LoadReport {
                worker_id: "a".into(),
                waiting_prompt_tokens: u64::MAX,
                sequence_tokens: u64::MAX,
                running_sequences: u32::MAX,
                free_blocks: u32::MAX,
                cached_blocks: u32::MAX,
                latency: Some(LatencyModel { prefill_token_us: us, ..Default::default() }),
                kv_sequence: 1,
                ..Default::default()
            };
            assert_eq!(core.report(load, NOW), Sync::Kept);
            for _ in 0..3 {
                assert_eq!(core.route(&question(), NOW).unwrap().decode.id.as_str(), "d", "{us}");
            }
        }
    }

    #[test]
    fn excluded_lives_are_never_chosen() {
        let excluding = |names: &[&str]| Question {
            excluded: names.iter().map(|name| WorkerLife::new(name, 0)).collect(),
            ..question()
        };
        let silent = Worker { silent: true, ..decode("e") };
        let other = Worker { numerics_id: "other", ..decode("o") };
        let workers =
            [decode("d"), silent, other, prefill("p"), Worker { running: 9, ..prefill("q") }];
        let chosen = |names: &[&str]| {
            let route = core(&workers, NOW).route(&excluding(names), NOW)?;
            Ok((route.decode.id.to_string(), route.prefill.map(|p| p.id.to_string())))
        };
        let pair = |d: &str, p: &str| Ok((d.to_string(), Some(p.to_string())));
        let alone = |d: &str| Ok((d.to_string(), None));
        assert_eq!(chosen(&[]), pair("d", "p"));
        assert_eq!(chosen(&["p", "unknown"]), pair("d", "q"));
        assert_eq!(chosen(&["p", "q"]), alone("d"));
        assert_eq!(chosen(&["d"]), alone("o"), "another numerics id rather than a silent worker");
        assert_eq!(chosen(&["d", "o"]), pair("e", "p"));
        assert_eq!(chosen(&["d", "o", "e"]), Err(NoRoute::AllExcluded));
        let other_life = Question { excluded: vec![WorkerLife::new("d", 7)], ..question() };
        assert_eq!(
            core(&[decode("d")], NOW).route(&other_life, NOW).unwrap().decode.id.as_str(),
            "d"
        );
    }

    #[test]
    fn no_worker_is_an_answer_too() {
        let now = NOW;
        assert_eq!(core(&[], now).route(&question(), now), Err(NoRoute::NoWorker));
        assert_eq!(core(&[prefill("p")], now).route(&question(), now), Err(NoRoute::NoWorker));
    }
}
