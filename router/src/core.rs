//! The decision.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use protocol::v1::{self, Role};
use protocol::{BlockHash, WorkerLife, hashes_from_bytes};

use crate::cost::{self, Assumed, Cost};
use crate::prefix_index::PrefixIndex;
use crate::worker_table::WorkerEntry;

/// A request, as far as routing is concerned.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Which model is to answer.
    pub model: String,
    /// The prompt's full blocks under each numerics id that serves the model.
    pub prompt_blocks: Vec<(String, Vec<BlockHash>)>,
    /// Length of the prompt.
    pub prompt_tokens: usize,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The worker that owns it.
    pub decode: WorkerLife,
    /// The worker that computes its prompt, where that is another one.
    pub prefill: Option<WorkerLife>,
    /// Blocks expected in the prefix cache of the one that computes the prompt.
    pub cached_blocks: usize,
    /// The prediction that won.
    pub cost: Cost,
}

/// No worker can take the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No worker serves this model.
    NoWorker,
}

/// All that routers know. Synchronous; the time is passed in.
#[derive(Default)]
pub struct Core {
    workers: BTreeMap<WorkerLife, WorkerEntry>,
    index: PrefixIndex,
}

impl Core {
    /// A worker is there.
    pub fn register(&mut self, registration: v1::WorkerRegistration, now: Instant) {
        let life = WorkerLife::new(&registration.worker_id, registration.incarnation);
        match self.workers.get_mut(&life) {
            Some(entry) => entry.registration = registration,
            None => {
                self.workers.insert(life, WorkerEntry::new(registration, now));
            }
        }
    }

    /// All workers known.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerLife> {
        self.workers.keys()
    }

    /// A worker is gone.
    pub fn remove(&mut self, worker: &WorkerLife) {
        self.workers.remove(worker);
        self.index.forget(worker);
    }

    /// A worker says how busy it is. Reports of unknown lives are late ones and left out.
    pub fn report(&mut self, load: v1::LoadReport, now: Instant) {
        let life = WorkerLife::new(&load.worker_id, load.incarnation);
        if let Some(entry) = self.workers.get_mut(&life) {
            entry.report(load, now);
        }
    }

    /// A worker's prefix cache changed. Returns whether messages were missed.
    pub fn kv_events(&mut self, events: &v1::KvEvents) -> bool {
        let life = WorkerLife::new(&events.worker_id, events.incarnation);
        let Some(entry) = self.workers.get(&life) else { return false };
        let blocks_max = entry.registration.kv_blocks as usize;
        let stored = hashes_from_bytes(&events.stored);
        let removed = hashes_from_bytes(&events.removed);
        self.index.apply(&life, events.sequence, stored, removed, blocks_max)
    }

    /// Chooses the pair (or the one worker) with the lowest predicted cost, and counts the
    /// request against it. Prefill and decode workers pair within one numerics id. Workers not
    /// heard of lately are passed over, unless all of them are.
    pub fn route(&mut self, question: &Question, now: Instant) -> Result<Route, NoRoute> {
        let best = self.best(question, now, true).or_else(|| self.best(question, now, false));
        let route = best.ok_or(NoRoute::NoWorker)?;
        let block_size = self.workers[&route.decode].registration.block_size as usize;
        let computed = question.prompt_tokens.saturating_sub(route.cached_blocks * block_size);
        let ttft = Duration::from_micros(route.cost.ttft_us as u64);
        let computing = route.prefill.as_ref().unwrap_or(&route.decode);
        if let Some(entry) = self.workers.get_mut(computing) {
            entry.dispatch(computed as u64, ttft, now);
        }
        if let (Some(_), Some(entry)) = (&route.prefill, self.workers.get_mut(&route.decode)) {
            entry.dispatch(0, ttft, now);
        }
        Ok(route)
    }

    fn best(&self, question: &Question, now: Instant, only_fresh: bool) -> Option<Route> {
        let mut best: Option<Route> = None;
        for (numerics_id, hashes) in &question.prompt_blocks {
            let matched = self.index.matched_blocks(hashes);
            let cached = |life: &WorkerLife| matched.get(life).copied().unwrap_or(0);
            let able = |(_, entry): &(&WorkerLife, &WorkerEntry)| {
                entry.registration.model == question.model
                    && entry.registration.numerics_id == *numerics_id
                    && (!only_fresh || entry.is_fresh(now))
            };
            let measured =
                self.workers.iter().filter(able).map(|(_, entry)| entry.load.prefill_us_per_token);
            let us_per_token = measured.filter(|us| *us > 0.0).reduce(f32::min);
            let us_per_token = us_per_token.unwrap_or(cost::PREFILL_US_PER_TOKEN);
            let assumed = Assumed { now, us_per_token };
            for (decode, entry) in self.workers.iter().filter(able) {
                if entry.registration.role() != Role::Decode {
                    continue;
                }
                let tokens_of = |blocks: usize| blocks * entry.registration.block_size as usize;
                let cached_here = cached(decode);
                let tokens = question.prompt_tokens;
                let cost = cost::local(entry, tokens, tokens_of(cached_here), assumed);
                keep_better(
                    &mut best,
                    Route {
                        decode: decode.clone(),
                        prefill: None,
                        cached_blocks: cached_here,
                        cost,
                    },
                );
                for (prefill, other) in self.workers.iter().filter(able) {
                    if other.registration.role() != Role::Prefill {
                        continue;
                    }
                    let there = cached(prefill);
                    let cost = cost::remote(
                        other,
                        entry,
                        tokens,
                        tokens_of(there),
                        tokens_of(cached_here),
                        assumed,
                    );
                    keep_better(
                        &mut best,
                        Route {
                            decode: decode.clone(),
                            prefill: Some(prefill.clone()),
                            cached_blocks: there,
                            cost,
                        },
                    );
                }
            }
        }
        best
    }
}

/// Of equal costs the first stays: workers are tried in the order of their names.
fn keep_better(best: &mut Option<Route>, candidate: Route) {
    if best.as_ref().is_none_or(|best| candidate.cost.total_us() < best.cost.total_us()) {
        *best = Some(candidate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ..Default::default()
        }
    }

    fn prefill(name: &'static str) -> Worker {
        Worker { prefill: true, ..decode(name) }
    }

    const PROMPT_TOKENS: usize = 160;

    fn hash(block: usize) -> BlockHash {
        BlockHash([block as u8; 16])
    }

    fn question() -> Question {
        let hashes: Vec<BlockHash> = (0..PROMPT_TOKENS / 16).map(hash).collect();
        Question {
            model: "m".into(),
            prompt_blocks: vec![("n".into(), hashes.clone()), ("other".into(), hashes)],
            prompt_tokens: PROMPT_TOKENS,
        }
    }

    fn core(workers: &[Worker], now: Instant) -> Core {
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
                ..Default::default()
            };
            let before = now - Duration::from_secs(10);
            core.register(registered, before);
            let load = v1::LoadReport {
                worker_id: worker.name.into(),
                running_sequences: worker.running,
                waiting_prompt_tokens: worker.waiting_tokens,
                free_blocks: worker.free_blocks,
                prefill_us_per_token: worker.us_per_token,
                decode_step_us: 1000.0,
                ..Default::default()
            };
            core.report(load, if worker.silent { before } else { now });
            let held: Vec<BlockHash> = (0..worker.cached_blocks).map(hash).collect();
            core.kv_events(&v1::KvEvents {
                worker_id: worker.name.into(),
                stored: protocol::hashes_to_bytes(&held),
                ..Default::default()
            });
        }
        core
    }

    /// Routes one request; `expected` is "decode" or "decode<-prefill".
    #[track_caller]
    fn check_route(workers: &[Worker], expected: &str) {
        let now = Instant::now() + Duration::from_secs(60);
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
    fn without_prefill_workers_the_decode_worker_computes() {
        check_route(&[decode("d")], "d");
    }

    #[test]
    fn what_the_decode_worker_has_seen_stays_there() {
        let seen = Worker { cached_blocks: 9, ..decode("d") };
        check_route(&[seen.clone(), prefill("p")], "d");
        check_route(&[seen, Worker { cached_blocks: 10, ..prefill("p") }], "d<-p");
    }

    #[test]
    fn prefixes_attract_and_queues_repel() {
        let seen = Worker { cached_blocks: 8, ..prefill("q") };
        check_route(&[decode("d"), prefill("p"), seen.clone()], "d<-q");
        let busy = Worker { waiting_tokens: 5000, ..seen };
        check_route(&[decode("d"), prefill("p"), busy], "d<-p");
    }

    #[test]
    fn faster_workers_are_preferred() {
        let fast = Worker { us_per_token: 10.0, ..prefill("q") };
        check_route(&[decode("d"), prefill("p"), fast], "d<-q");
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
        let now = Instant::now() + Duration::from_secs(60);
        let mut core = core(&[decode("d"), prefill("p"), prefill("q")], now);
        let chosen = |core: &mut Core| core.route(&question(), now).unwrap().prefill.unwrap();
        let (first, second) = (chosen(&mut core), chosen(&mut core));
        assert_eq!((first.id.as_str(), second.id.as_str()), ("p", "q"));
        assert_eq!(core.workers[&first].queued_tokens(now), PROMPT_TOKENS as u64);
        let later = now + Duration::from_millis(17);
        assert_eq!(core.workers[&first].queued_tokens(later), 0, "16 ms were predicted");
        let report = v1::LoadReport { worker_id: "p".into(), ..Default::default() };
        core.report(report, now + Duration::from_secs(1));
        assert_eq!(core.workers[&first].queued_tokens(now), 0);
    }

    #[test]
    fn no_worker_is_an_answer_too() {
        let now = Instant::now() + Duration::from_secs(60);
        assert_eq!(core(&[], now).route(&question(), now), Err(NoRoute::NoWorker));
        assert_eq!(core(&[prefill("p")], now).route(&question(), now), Err(NoRoute::NoWorker));
    }
}
