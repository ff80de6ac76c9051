//! Pools of workers that may pair, and the choice among the workers of one.

use std::fmt;

use protocol::WorkerLife;
use protocol::v1::LatencyModel;

use crate::cost::{self, Cost, Sizes};
use crate::prefix_index::Slot;
use crate::worker_table::{Time, WorkerEntry};

/// Steps of a kind that a worker is credited with at most, so that who comes later, or becomes slower,
/// is heard too.
const STEPS_COUNTED_MAX: u64 = 1_024;

/// All workers, by slot.
pub type Slots = Vec<Option<(WorkerLife, WorkerEntry)>>;

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
    /// The best choice of the other kind: with a prefill worker or without.
    pub otherwise: Option<Box<Route>>,
}

/// For people: the choice, what was predicted of it, and the best one of the other kind.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "decode={};", self.decode.id)?;
        if let Some(prefill) = &self.prefill {
            write!(f, "prefill={};", prefill.id)?;
        }
        let Cost { ttft_us, slowdown_us } = self.cost;
        let cached_blocks = self.cached_blocks;
        write!(
            f,
            "cached_blocks={cached_blocks};ttft_us={ttft_us:.0};slowdown_us={slowdown_us:.0}"
        )?;
        match &self.otherwise {
            Some(other) => write!(f, ";otherwise=({other})"),
            None => Ok(()),
        }
    }
}

/// Workers that compute the same bits.
#[derive(Default)]
pub struct Pool {
    /// In the order of their names: of equal costs the first wins.
    pub decode: Vec<Slot>,
    /// Likewise.
    pub prefill: Vec<Slot>,
    /// What those of them measured that have made the most steps, for those that have made few.
    pub latency: Option<LatencyModel>,
}

impl Pool {
    /// Each half of the model is taken from who knows most about it; of those who know about as
    /// much, from who said it last.
    pub fn learn(&mut self, mut measured: LatencyModel) {
        measured.prefill_steps = measured.prefill_steps.min(STEPS_COUNTED_MAX);
        measured.decode_steps = measured.decode_steps.min(STEPS_COUNTED_MAX);
        let known = self.latency.get_or_insert(measured);
        if measured.prefill_steps >= known.prefill_steps / 2 {
            let LatencyModel { prefill_token_us, prefill_attended_us, prefill_steps, .. } =
                measured;
            *known =
                LatencyModel { prefill_token_us, prefill_attended_us, prefill_steps, ..*known };
        }
        if measured.decode_steps >= known.decode_steps / 2 {
            let LatencyModel { step_us, sequence_us, attended_us, decode_steps, .. } = measured;
            *known = LatencyModel { step_us, sequence_us, attended_us, decode_steps, ..*known };
        }
    }
}

/// The choice among the workers of one pool.
pub struct Choice<'a> {
    /// All workers.
    pub slots: &'a Slots,
    /// What each has of the prompt, by slot.
    pub cached_blocks: Vec<usize>,
    /// The request's sizes.
    pub sizes: Sizes,
    /// The present.
    pub now: Time,
    /// Whether workers not heard of lately are passed over.
    pub only_fresh: bool,
    /// Workers that the request must not go to.
    pub excluded: &'a [Slot],
}

impl Choice<'_> {
    /// The pair, or the one worker, with the lowest cost.
    pub fn in_pool(&self, pool: &Pool) -> Option<Route> {
        let Self { sizes, now, .. } = *self;
        let (mut local, mut receive, mut prefill) = (None, None, None);
        for (slot, entry, cached_tokens) in self.able(&pool.decode) {
            let stream = cost::stream(entry, sizes);
            keep_lower(&mut local, slot, cost::local(entry, sizes, cached_tokens, now) + stream);
            keep_lower(&mut receive, slot, cost::receive(entry, sizes, cached_tokens) + stream);
        }
        for (slot, entry, cached_tokens) in self.able(&pool.prefill) {
            keep_lower(&mut prefill, slot, cost::prefill(entry, sizes, cached_tokens, now));
        }
        let remote = receive.zip(prefill).map(|((decode, receiving), (prefill, computing))| {
            self.route(decode, Some(prefill), receiving + computing)
        });
        let local = local.map(|(decode, cost)| self.route(decode, None, cost));
        match (local, remote) {
            (Some(local), Some(remote)) if remote.cost.total_us() < local.cost.total_us() => {
                Some(Route { otherwise: Some(Box::new(local)), ..remote })
            }
            (Some(local), remote) => Some(Route { otherwise: remote.map(Box::new), ..local }),
            (None, remote) => remote,
        }
    }

    /// The workers that may be chosen, with the tokens of the prompt that they have cached.
    fn able<'b>(
        &'b self,
        workers: &'b [Slot],
    ) -> impl Iterator<Item = (Slot, &'b WorkerEntry, usize)> {
        workers.iter().filter_map(|slot| {
            let (_, entry) = self.slots[*slot as usize].as_ref()?;
            let is_able =
                (!self.only_fresh || entry.is_fresh(self.now)) && !self.excluded.contains(slot);
            let cached_tokens = self.cached_blocks[*slot as usize] * entry.block_size();
            is_able.then_some((*slot, entry, cached_tokens))
        })
    }

    fn route(&self, decode: Slot, prefill: Option<Slot>, cost: Cost) -> Route {
        let life = |slot: Slot| {
            let (life, _) = self.slots[slot as usize].as_ref().expect("a pool's worker");
            life.clone()
        };
        Route {
            decode: life(decode),
            prefill: prefill.map(life),
            cached_blocks: self.cached_blocks[prefill.unwrap_or(decode) as usize],
            cost,
            otherwise: None,
        }
    }
}

/// Of equal costs the first stays.
fn keep_lower(lowest: &mut Option<(Slot, Cost)>, slot: Slot, cost: Cost) {
    if lowest.is_none_or(|(_, lowest)| cost.total_us() < lowest.total_us()) {
        *lowest = Some((slot, cost));
    }
}

/// Of equal costs the first stays.
pub fn cheaper(a: Route, b: Route) -> Route {
    if b.cost.total_us() < a.cost.total_us() { b } else { a }
}
