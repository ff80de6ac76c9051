//! The best pair of a decode and a prefill worker.
//!
//! Where nothing but a network is between them, the best prefill worker is found alone, then the best decode
//! worker for it, and then a prefill worker that is better for that one. Within each host, the best pair is
//! taken to be the best of each. Beside these, each decode worker is looked at with the best prefill worker
//! of each spot that is closer to it than two processes of one host. So a decision looks at each worker once
//! or twice and at a few pairs, not at every pair.

use protocol::link::{self, TransferRate};
use protocol::v1::KvLink;

use crate::cost::{Cost, Sizes, Window};
use crate::gauge::Gauge;
use crate::holders::Slot;
use crate::workers::Workers;

/// What KV goes over between a pair, and for how long nobody can make use of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// What lies between them.
    pub link: KvLink,
    /// By how much the second token is late because of it, in microseconds.
    pub exposed_us: f32,
}

/// A pair and its whole cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The worker that owns the request.
    pub decode: Slot,
    /// The worker that computes its prompt.
    pub prefill: Slot,
    /// Of all.
    pub cost: Cost,
    /// Of that, the transfer.
    pub moved: Move,
}

/// One half of a pair, and its own cost.
pub type Half = (Slot, Cost);

/// Finds the best pair of decode workers, which are given one by one, with some prefill workers.
pub struct Pairs<'a> {
    workers: &'a Workers,
    sizes: Sizes,
    /// Tokens cached, by slot.
    cached_tokens: &'a dyn Fn(Slot) -> u32,
    computing: &'a [Half],
    /// The best of these by the number of their spot.
    by_spot: Vec<Option<Half>>,
    /// The best of the prefill workers, and how it computes.
    first: Option<(Half, Window)>,
    /// The best decode worker for that one across a network, and what that takes.
    receiving: Option<(Half, f32)>,
    /// By the host's number, the best of each there.
    within: Vec<(Option<Half>, Option<Half>)>,
    best: Option<Pair>,
}

impl<'a> Pairs<'a> {
    /// With these prefill workers, and no decode worker yet.
    pub fn new(
        workers: &'a Workers,
        sizes: Sizes,
        cached_tokens: &'a dyn Fn(Slot) -> u32,
        computing: &'a [Half],
    ) -> Self {
        let gauges = workers.gauges();
        let mut by_spot = vec![None; workers.spots()];
        let (mut first, mut within) = (None, vec![(None, None); workers.hosts()]);
        for half in computing {
            let gauge = &gauges[half.0 as usize];
            keep_lower(&mut first, *half);
            if let Some(host) = gauge.host {
                keep_lower(&mut within[host as usize].1, *half);
            }
            if let Some(spot) = gauge.spot {
                keep_lower(&mut by_spot[spot as usize], *half);
            }
        }
        let first = first.map(|(slot, cost)| {
            let window = Window::new(&gauges[slot as usize], sizes, cached_tokens(slot));
            ((slot, cost), window)
        });
        let (receiving, best) = (None, None);
        Self { workers, sizes, cached_tokens, computing, by_spot, first, receiving, within, best }
    }

    /// A decode worker, and what it costs without the transfer.
    pub fn decode(&mut self, decode: Half) {
        let (slot, cost) = decode;
        let Some(((prefill, _), window)) = self.first else { return };
        let gauges = self.workers.gauges();
        let (reader, source) = (&gauges[slot as usize], &gauges[prefill as usize]);
        let (_, rate) = across_network(reader, source);
        let exposed_us = window.exposed_us(self.missing_tokens(slot), reader.token_bytes, rate);
        let total_us = cost.total_us() + exposed_us;
        if self.receiving.is_none_or(|(_, lowest_us)| total_us < lowest_us) {
            self.receiving = Some((decode, total_us));
        }
        if let Some(host) = reader.host {
            keep_lower(&mut self.within[host as usize].0, decode);
        }
        let workers = self.workers;
        for neighbour in workers.neighbours(slot) {
            if let Some(prefill) = self.by_spot[neighbour.spot as usize] {
                self.try_pair(decode, prefill);
            }
        }
    }

    /// The pair with the lowest cost; of equal ones the closest.
    pub fn best(mut self) -> Option<Pair> {
        for (decode, prefill) in std::mem::take(&mut self.within) {
            if let Some((decode, prefill)) = decode.zip(prefill) {
                self.try_pair(decode, prefill);
            }
        }
        if let (Some((decode, _)), Some((first, _))) = (self.receiving, self.first) {
            self.try_pair(decode, first);
            let least_us = decode.1.total_us() + self.least_exposed_us(decode.0);
            for prefill in self.computing {
                // Most are no better however they compute.
                if self.is_better(least_us + prefill.1.total_us()) {
                    self.try_pair(decode, *prefill);
                }
            }
        }
        self.best
    }

    /// What a decode worker waits for at least, whoever computes elsewhere: one token, over its own card.
    fn least_exposed_us(&self, decode: Slot) -> f32 {
        let reader = &self.workers.gauges()[decode as usize];
        let last = self.missing_tokens(decode).min(1.0);
        let us = |rate: TransferRate| rate.copy_bytes_us(last * reader.token_bytes);
        let least_us = reader.rdma.map_or(f32::INFINITY, us).min(us(reader.network));
        if last > 0.0 { least_us } else { 0.0 }
    }

    /// Most are no better even without the transfer. (Inline, which is worth a quarter of a decision: the costs
    /// are in registers.)
    #[inline]
    fn try_pair(&mut self, decode: Half, prefill: Half) {
        if self.is_better((decode.1 + prefill.1).total_us()) {
            self.try_with_move(decode, prefill);
        }
    }

    fn try_with_move(&mut self, (decode, receiving): Half, (prefill, computing): Half) {
        let without_move = receiving + computing;
        let moved = self.moved(decode, prefill);
        let cost = without_move + Cost { ttft_us: 0.0, slowdown_us: moved.exposed_us };
        if self.is_better(cost.total_us()) {
            self.best = Some(Pair { decode, prefill, cost, moved });
        }
    }

    fn is_better(&self, total_us: f32) -> bool {
        self.best.is_none_or(|best| total_us < best.cost.total_us())
    }

    fn moved(&self, decode: Slot, prefill: Slot) -> Move {
        let gauges = self.workers.gauges();
        let (reader, source) = (&gauges[decode as usize], &gauges[prefill as usize]);
        let (link, rate) = self.between(decode, prefill);
        let window = Window::new(source, self.sizes, (self.cached_tokens)(prefill));
        let exposed_us = window.exposed_us(self.missing_tokens(decode), reader.token_bytes, rate);
        Move { link, exposed_us }
    }

    fn missing_tokens(&self, decode: Slot) -> f32 {
        self.sizes.prompt.saturating_sub((self.cached_tokens)(decode)) as f32
    }

    /// What the pair would use, and how fast it is.
    fn between(&self, decode: Slot, prefill: Slot) -> (KvLink, TransferRate) {
        let gauges = self.workers.gauges();
        let (reader, source) = (&gauges[decode as usize], &gauges[prefill as usize]);
        let measured = |link, promised| match self.workers.entry(decode) {
            Some(entry) => (link, entry.rate(link, promised)),
            None => (link, promised),
        };
        let mut neighbours = self.workers.neighbours(decode).iter();
        if let Some(neighbour) = neighbours.find(|neighbour| Some(neighbour.spot) == source.spot) {
            return measured(neighbour.link, neighbour.promised);
        }
        if reader.host.is_some() && reader.host == source.host {
            return measured(KvLink::Host, link::within_host());
        }
        across_network(reader, source)
    }
}

/// Between two hosts: as fast as the slower card. What a reader measured counts, unless it is more than the
/// source's card is known to let through.
fn across_network(reader: &Gauge, source: &Gauge) -> (KvLink, TransferRate) {
    match (reader.rdma, source.rdma) {
        (Some(ours), Some(theirs)) => (KvLink::Rdma, ours.slower(theirs)),
        _ => (KvLink::Network, reader.network.slower(source.network_bound)),
    }
}

/// Of equal ones the first stays.
fn keep_lower(lowest: &mut Option<Half>, half: Half) {
    if lowest.is_none_or(|(_, lowest)| half.1.total_us() < lowest.total_us()) {
        *lowest = Some(half);
    }
}
