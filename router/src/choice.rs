//! The choice among the workers of one pool, and among pools.

use std::{fmt, iter};

use protocol::WorkerLife;

use crate::cost::{self, Cost, Sizes};
use crate::gauge::{Gauge, Standing};
use crate::holders::Slot;
use crate::pair::{Half, Move, Pair, Pairs};
use crate::pool::Pool;
use crate::worker_table::Time;
use crate::workers::Workers;

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
    /// How long the prompt keeps the one busy that computes it, in microseconds.
    pub prefill_us: f32,
    /// How the prompt's KV gets from one to the other.
    pub moved: Option<Move>,
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
        if let Some(Move { link, exposed_us }) = self.moved {
            let link = link.as_str_name().trim_start_matches("KV_LINK_").to_ascii_lowercase();
            write!(f, ";link={link};exposed_us={exposed_us:.0}")?;
        }
        match &self.otherwise {
            Some(other) => write!(f, ";otherwise=({other})"),
            None => Ok(()),
        }
    }
}

/// The choice among the workers of one pool.
pub struct Choice<'a> {
    /// All workers.
    pub workers: &'a Workers,
    /// Those that may be chosen.
    pub pool: &'a Pool,
    /// What each has of the prompt, by slot.
    pub cached_blocks: Vec<u32>,
    /// The request's sizes.
    pub sizes: Sizes,
    /// The present.
    pub now: Time,
    /// Workers that the request must not go to.
    pub excluded: Vec<Slot>,
}

impl Choice<'_> {
    /// The pair, or the one worker, with the lowest cost, of the workers at least `worst` well. None
    /// without a decode worker.
    pub fn among_decode_workers(&self, worst: Standing) -> Option<Route> {
        let Self { sizes, now, .. } = *self;
        let cached_tokens =
            |slot: Slot| self.cached_tokens(slot, &self.workers.gauges()[slot as usize]);
        let prefill = self.able(&self.pool.prefill, worst);
        let computing: Vec<Half> = prefill
            .map(|(slot, gauge, cached)| (slot, cost::prefill(gauge, sizes, cached, now)))
            .collect();
        let mut pairs = Pairs::new(self.workers, sizes, &cached_tokens, &computing);
        let mut local = None;
        for (slot, gauge, cached_tokens) in self.able(&self.pool.decode, worst) {
            let stream = cost::stream(gauge, sizes);
            keep_lower(&mut local, slot, cost::local(gauge, sizes, cached_tokens, now) + stream);
            pairs.decode((slot, cost::receive() + stream));
        }
        let remote = pairs.best().map(|Pair { decode, prefill, cost, moved }| Route {
            moved: Some(moved),
            ..self.route(decode, Some(prefill), cost)
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

    /// The prefill worker with the lowest cost of doing all by itself, likewise.
    pub fn among_prefill_workers(&self, worst: Standing) -> Option<Route> {
        let Self { sizes, now, .. } = *self;
        let mut local = None;
        for (slot, gauge, cached_tokens) in self.able(&self.pool.prefill, worst) {
            let cost = cost::local(gauge, sizes, cached_tokens, now) + cost::stream(gauge, sizes);
            keep_lower(&mut local, slot, cost);
        }
        local.map(|(slot, cost)| self.route(slot, None, cost))
    }

    /// The workers that may be chosen, with the tokens of the prompt that they have cached.
    fn able<'b>(
        &'b self,
        workers: &'b [Slot],
        worst: Standing,
    ) -> impl Iterator<Item = (Slot, &'b Gauge, u32)> {
        let gauges = self.workers.gauges();
        workers.iter().filter_map(move |slot| {
            let gauge = gauges.get(*slot as usize)?;
            let is_able = gauge.standing(self.now) <= worst
                && !gauge.is_draining
                && !self.excluded.contains(slot);
            is_able.then(|| (*slot, gauge, self.cached_tokens(*slot, gauge)))
        })
    }

    fn cached_tokens(&self, slot: Slot, gauge: &Gauge) -> u32 {
        self.cached_blocks[slot as usize].saturating_mul(gauge.block_size)
    }

    fn route(&self, decode: Slot, prefill: Option<Slot>, cost: Cost) -> Route {
        let life = |slot: Slot| self.workers.life(slot).expect("a pool's worker").clone();
        let computing = prefill.unwrap_or(decode);
        let gauge = &self.workers.gauges()[computing as usize];
        let cached_tokens = self.cached_tokens(computing, gauge);
        let prefill_us = match prefill {
            Some(_) => cost::pulled_prefill_us(gauge, self.sizes, cached_tokens),
            None => cost::prefill_us(gauge, self.sizes, cached_tokens),
        };
        Route {
            decode: life(decode),
            prefill: prefill.map(life),
            cached_blocks: self.cached_blocks[computing as usize] as usize,
            cost,
            prefill_us,
            moved: None,
            otherwise: None,
        }
    }
}

impl Route {
    /// The workers that it keeps busy, with the microseconds that the prompt takes of their time.
    pub fn shares(&self) -> impl Iterator<Item = (&WorkerLife, f32)> {
        let decode_us = if self.prefill.is_some() { 0.0 } else { self.prefill_us };
        let prefill = self.prefill.as_ref().map(|worker| (worker, self.prefill_us));
        iter::once((&self.decode, decode_us)).chain(prefill)
    }
}

/// The best of some pools, named by their numerics ids. What a `preferred` id began goes on under it
/// where it can, even if that means a silent worker: bytes stay the same. In each round, prefill
/// workers own a request only where no decode worker can.
pub fn best(pools: &[(&str, Choice)], preferred: &str) -> Option<Route> {
    use Standing::{Silent, Sound, Suspected};
    let rounds = [
        (true, Sound),
        (true, Silent),
        (false, Sound),
        (false, Silent),
        (true, Suspected),
        (false, Suspected),
    ];
    rounds.into_iter().find_map(|(is_preferred, worst)| {
        let choices = || {
            let among = pools.iter().filter(move |(id, _)| !is_preferred || *id == preferred);
            among.map(|(_, choice)| choice)
        };
        let decode = choices().filter_map(|choice| choice.among_decode_workers(worst));
        decode.reduce(cheaper).or_else(|| {
            choices().filter_map(|choice| choice.among_prefill_workers(worst)).reduce(cheaper)
        })
    })
}

/// Of equal costs the first stays.
fn keep_lower(lowest: &mut Option<(Slot, Cost)>, slot: Slot, cost: Cost) {
    if lowest.is_none_or(|(_, lowest)| cost.total_us() < lowest.total_us()) {
        *lowest = Some((slot, cost));
    }
}

/// Of equal costs the first stays.
fn cheaper(a: Route, b: Route) -> Route {
    if b.cost.total_us() < a.cost.total_us() { b } else { a }
}
