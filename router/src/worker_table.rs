//! What the router knows of each worker: its registration, its last load report, and what was
//! dispatched to it since.

use std::collections::VecDeque;

use protocol::link::{self, TransferRate};
use protocol::v1::{self, KvLink, LatencyModel, TransferModel};

use crate::gauge::Gauge;
use crate::near::Whereabouts;

/// Microseconds since the router began.
pub type Time = u64;

/// A worker that missed three reports is passed over, unless all have.
const REPORT_AGE_MAX: Time = 350_000;

/// A report contains what was dispatched at least this long before it came.
const REPORT_DELAY: Time = 10_000;

/// A worker that someone found dead, silent or hung is passed over for so long.
const SUSPICION: Time = 5_000_000;

/// What other routers tell was dispatched about so long ago: they tell every 20 ms.
const TOLD_AFTER: Time = 10_000;

/// Dispatches remembered per worker; at the limit the oldest are taken as reported.
const DISPATCHES_MAX: usize = 1024;

/// Assumed while no worker of a numerics id has made a step.
const UNMEASURED: LatencyModel = LatencyModel {
    step_us: 5_000.0,
    prefill_token_us: 200.0,
    prefill_attended_us: 0.0,
    sequence_us: 500.0,
    attended_us: 0.0,
    prefill_steps: 0,
    decode_steps: 0,
};

/// After so many steps of a kind, what a worker measured counts as much as what its equals did.
const LEANING_STEPS: f32 = 8.0;

/// After so many copies over a link, what a worker measured of it counts as much as what it promises.
const LEANING_COPIES: f32 = 8.0;

/// Links that a worker can tell of; there are not as many.
const LINKS_MAX: usize = 16;

/// One worker's life.
pub struct WorkerEntry {
    /// Who it is and what it serves.
    pub registration: v1::WorkerRegistration,
    /// Where it is; the table's.
    pub whereabouts: Whereabouts,
    promised: Promised,
    /// How long its steps take.
    latency: LatencyModel,
    /// How long copies to it took, by link.
    transfers: Vec<TransferModel>,
    heard: Time,
    suspected_until: Time,
    /// When it will have computed all prompts that were sent to it.
    busy_until: Time,
    reported: Reported,
    /// Sent here since what the last report contains.
    dispatched: VecDeque<Dispatch>,
    /// Their tokens, summed up.
    dispatched_tokens: u64,
}

/// What its network cards promise. They stay the same in a life; gauges are made far more often.
struct Promised {
    network: TransferRate,
    network_bound: TransferRate,
    rdma: Option<TransferRate>,
}

impl Promised {
    fn by(hardware: Option<&v1::Hardware>) -> Self {
        Self {
            network: hardware.map_or_else(link::unknown, v1::Hardware::network),
            network_bound: hardware.map_or_else(Default::default, v1::Hardware::network_bound),
            rdma: hardware.and_then(v1::Hardware::rdma),
        }
    }
}

/// What the last report said.
#[derive(Default)]
struct Reported {
    streams: u32,
    stream_tokens: u64,
    available_blocks: u32,
}

struct Dispatch {
    at: Time,
    /// What its prompt takes here.
    prefill_us: Time,
    tokens: u64,
}

impl WorkerEntry {
    /// A worker that just registered and counts as idle until it reports; its steps are assumed to
    /// take as long as those of its equals.
    pub fn new(
        registration: v1::WorkerRegistration,
        equals: Option<LatencyModel>,
        now: Time,
    ) -> Self {
        let available_blocks = registration.kv_blocks;
        Self {
            promised: Promised::by(registration.hardware.as_ref()),
            registration,
            reported: Reported { available_blocks, ..Default::default() },
            whereabouts: Whereabouts::default(),
            latency: equals.unwrap_or(UNMEASURED),
            transfers: Vec::new(),
            heard: now,
            suspected_until: 0,
            busy_until: now,
            dispatched: VecDeque::new(),
            dispatched_tokens: 0,
        }
    }

    /// Takes a report in; it supersedes what was dispatched before it was made. What the worker
    /// has measured little of leans on its equals.
    pub fn report(&mut self, load: &v1::LoadReport, equals: Option<LatencyModel>, now: Time) {
        self.latency = blended(load.latency, equals.or(load.latency).unwrap_or(UNMEASURED));
        let told = load.transfers.iter().filter(|model| model.is_sound()).take(LINKS_MAX);
        self.transfers.clear();
        self.transfers.extend(told);
        let waiting_tokens = load.waiting_prompt_tokens as f32;
        let waiting_us = match load.waiting_prompt_tokens {
            0 => 0.0,
            _ => self.latency.predict_prefill_us(0.0, waiting_tokens, self.chunk_tokens()),
        };
        self.reported = Reported {
            streams: load.running_sequences.saturating_add(load.waiting_sequences),
            stream_tokens: load.sequence_tokens,
            available_blocks: load.free_blocks.saturating_add(load.cached_blocks),
        };
        self.heard = now;
        self.dispatched.retain(|dispatch| now < dispatch.at + REPORT_DELAY);
        self.dispatched_tokens = self.dispatched.iter().map(|dispatch| dispatch.tokens).sum();
        let unreported: Time = self.dispatched.iter().map(|dispatch| dispatch.prefill_us).sum();
        self.busy_until = now + bounded(waiting_us) + unreported;
    }

    /// Counts a request sent here just now, whose prompt of `tokens` tokens takes `prefill_us` of its
    /// time.
    pub fn dispatch(&mut self, prefill_us: f32, tokens: u64, now: Time) {
        self.count(Dispatch { at: now, prefill_us: bounded(prefill_us), tokens }, now);
    }

    /// Counts one that another router sent here.
    pub fn dispatch_elsewhere(&mut self, prefill_us: f32, tokens: u64, now: Time) {
        let at = now.saturating_sub(TOLD_AFTER);
        self.count(Dispatch { at, prefill_us: bounded(prefill_us), tokens }, now);
    }

    fn count(&mut self, dispatch: Dispatch, now: Time) {
        if self.dispatched.len() >= DISPATCHES_MAX
            && let Some(oldest) = self.dispatched.pop_front()
        {
            self.dispatched_tokens -= oldest.tokens;
        }
        self.busy_until = self.busy_until.max(now) + dispatch.prefill_us;
        self.dispatched_tokens += dispatch.tokens;
        self.dispatched.push_back(dispatch);
    }

    /// Someone found it dead, silent or hung.
    /// Returns whether that is news.
    pub fn suspect(&mut self, now: Time) -> bool {
        let is_news = self.suspected_until <= now;
        self.suspected_until = now + SUSPICION;
        is_news
    }

    /// It at a glance.
    pub fn gauge(&self) -> Gauge {
        let block_size = self.registration.block_size.max(1);
        let available_tokens = u64::from(self.reported.available_blocks) * u64::from(block_size);
        let stream_tokens = self.reported.stream_tokens.saturating_add(self.dispatched_tokens);
        Gauge {
            latency: self.latency,
            block_size,
            chunk_tokens: self.chunk_tokens(),
            token_bytes: self.registration.block_bytes as f32 / block_size as f32,
            host: self.whereabouts.host,
            spot: self.whereabouts.spot,
            network: self.rate(KvLink::Network, self.promised.network),
            network_bound: self.promised.network_bound,
            rdma: self.promised.rdma.map(|promised| self.rate(KvLink::Rdma, promised)),
            streams: (self.reported.streams as usize + self.dispatched.len()) as f32,
            stream_tokens: stream_tokens as f32,
            room_tokens: available_tokens.saturating_sub(self.dispatched_tokens) as f32,
            busy_until: self.busy_until,
            heard_until: self.heard + REPORT_AGE_MAX,
            suspected_until: self.suspected_until,
            is_draining: self.registration.draining,
        }
    }

    /// How fast KV comes to it over a link: as fast as the link promises, and more and more as it did.
    pub fn rate(&self, link: KvLink, promised: TransferRate) -> TransferRate {
        let measured = self.transfers.iter().find(|model| model.link() == link);
        let Some(measured) = measured else { return promised };
        let share = measured.copies as f32 / (measured.copies as f32 + LEANING_COPIES);
        let between = |measured: f32, promised: f32| share * measured + (1.0 - share) * promised;
        let rate = measured.rate();
        TransferRate {
            copy_us: between(rate.copy_us, promised.copy_us),
            byte_us: between(rate.byte_us, promised.byte_us),
        }
    }

    fn chunk_tokens(&self) -> f32 {
        self.registration.max_num_batched_tokens.max(1) as f32
    }
}

/// A predicted time that later ones can be added to: at most an hour.
fn bounded(us: f32) -> Time {
    us.clamp(0.0, 3_600e6) as Time
}

/// What a worker measured, leaning on its equals while it has made few steps of a kind: what it
/// measured while the machine was busy with something else must not keep work away from it for ever.
fn blended(measured: Option<LatencyModel>, equals: LatencyModel) -> LatencyModel {
    let Some(own) = measured else { return equals };
    let share = |steps: u64| steps as f32 / (steps as f32 + LEANING_STEPS);
    let (prefill, decode) = (share(own.prefill_steps), share(own.decode_steps));
    let between = |own: f32, equals: f32, share: f32| share * own + (1.0 - share) * equals;
    LatencyModel {
        step_us: between(own.step_us, equals.step_us, prefill.max(decode)),
        prefill_token_us: between(own.prefill_token_us, equals.prefill_token_us, prefill),
        prefill_attended_us: between(own.prefill_attended_us, equals.prefill_attended_us, prefill),
        sequence_us: between(own.sequence_us, equals.sequence_us, decode),
        attended_us: between(own.attended_us, equals.attended_us, decode),
        ..own
    }
}
