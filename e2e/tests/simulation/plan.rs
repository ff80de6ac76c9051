//! What happens in a life: all of it follows from the seed.

use std::time::Duration;

use engine::{EngineConfig, MockTimes};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::client::Run;
use crate::model::VOCABULARY;

/// Requests come, and things break, within this time.
const STORM_MS: u64 = 3_000;

/// A worker that came back is known everywhere after this long.
const RECOVERY: Duration = Duration::from_millis(1_500);

/// A worker whose connections broke is connected again after this long.
const RECONNECTION: Duration = Duration::from_millis(300);

/// A whole life.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub workers: Vec<WorkerPlan>,
    pub requests: Vec<Request>,
    /// In the order of their times.
    pub disturbances: Vec<Disturbance>,
    pub weather: Weather,
}

/// One worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerPlan {
    pub is_prefill: bool,
    pub sizes: EngineConfig,
    pub times: MockTimes,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub at: Duration,
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub temperature: f32,
    pub seed: u32,
    pub is_streamed: bool,
    /// The client goes this long after it asked.
    pub hang_up: Option<Duration>,
}

/// What is done to workers, named by their number.
#[derive(Clone, Copy, Debug)]
pub enum Disturbance {
    /// All its connections break.
    Cut { at: Duration, worker: usize },
    /// It is gone, with its connections.
    Kill { at: Duration, worker: usize },
    /// It is there again, in another life.
    Restart { at: Duration, worker: usize },
}

/// What happens to messages all the time.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Messages of the bus take up to so long.
    pub bus_delay_ms_max: u64,
    /// Events and load reports that are lost.
    pub event_loss: f64,
    /// Routing requests and replies that are lost.
    pub route_loss: f64,
    /// Pieces on a connection take up to so long.
    pub link_delay_ms_max: u64,
    /// Reads of another worker's blocks that fail.
    pub read_failure: f64,
}

impl Plan {
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let block_size = *[4, 8, 16].choose(&mut rng).unwrap();
        let (decoders, prefillers) = (rng.random_range(1..=3), rng.random_range(0..=3));
        let workers: Vec<WorkerPlan> = (0..decoders + prefillers)
            .map(|index| WorkerPlan::draw(&mut rng, index >= decoders, block_size))
            .collect();
        let prefixes: Vec<Vec<u32>> = (0..3).map(|_| tokens(&mut rng, 1..120)).collect();
        let requests =
            (0..rng.random_range(4..=14)).map(|_| Request::draw(&mut rng, &prefixes)).collect();
        let disturbances = disturbances(&mut rng, workers.len());
        Self { seed, workers, requests, disturbances, weather: Weather::draw(&mut rng) }
    }

    /// Whether a request may fail: at some moment of its life no worker was there at all.
    pub fn excuses(&self, run: &Run) -> bool {
        let moments = self.disturbances.iter().map(Disturbance::at).chain([run.began]);
        let mut lived = moments.filter(|at| (run.began..=run.ended).contains(at));
        lived.any(|at| (0..self.workers.len()).all(|worker| self.is_away(worker, at)))
    }

    fn is_away(&self, worker: usize, moment: Duration) -> bool {
        self.disturbances.iter().filter(|other| other.worker() == worker).any(|disturbance| {
            let (from, to) = match disturbance {
                Disturbance::Cut { at, .. } => (*at, *at + RECONNECTION),
                Disturbance::Kill { at, .. } => (*at, self.back_at(worker, *at) + RECOVERY),
                Disturbance::Restart { .. } => return false,
            };
            (from..=to).contains(&moment)
        })
    }

    fn back_at(&self, worker: usize, killed: Duration) -> Duration {
        let restarts = self.disturbances.iter().filter_map(|disturbance| match disturbance {
            Disturbance::Restart { at, worker: other } if *other == worker => Some(*at),
            _ => None,
        });
        restarts.filter(|at| *at > killed).min().expect("each killed worker comes back")
    }
}

impl WorkerPlan {
    fn draw(rng: &mut StdRng, is_prefill: bool, block_size: usize) -> Self {
        let sizes = EngineConfig {
            block_size,
            // Room for one of the longest requests, or for some.
            kv_blocks: rng.random_range(260..900) / block_size,
            max_num_seqs: rng.random_range(1..=8),
            max_num_batched_tokens: rng.random_range(8..=160),
            waiting_sequences_max: 1024,
            speculative_tokens: rng.random_range(0..8),
            step_target: rng.random_bool(0.5).then(|| milliseconds(rng, 50)),
            shares_memory: false,
        };
        let times = MockTimes {
            prefill_us_per_token: rng.random_range(20.0..1000.0),
            step_us: rng.random_range(500.0..8_000.0),
            step_us_per_seq: rng.random_range(0.0..500.0),
        };
        Self { is_prefill, sizes, times }
    }
}

impl Request {
    fn draw(rng: &mut StdRng, prefixes: &[Vec<u32>]) -> Self {
        let mut prompt = prefixes.choose(rng).unwrap().clone();
        if rng.random_bool(0.8) {
            prompt.extend(tokens(rng, 1..80));
        }
        let hangs_up = rng.random_bool(0.15);
        Self {
            at: milliseconds(rng, STORM_MS),
            prompt,
            max_tokens: rng.random_range(1..=30),
            temperature: if rng.random_bool(0.5) { 0.0 } else { 1.0 },
            seed: rng.random_range(0..1000),
            is_streamed: rng.random_bool(0.7),
            hang_up: hangs_up.then(|| milliseconds(rng, 400)),
        }
    }
}

impl Disturbance {
    pub fn at(&self) -> Duration {
        match self {
            Self::Cut { at, .. } | Self::Kill { at, .. } | Self::Restart { at, .. } => *at,
        }
    }

    fn worker(&self) -> usize {
        match self {
            Self::Cut { worker, .. } | Self::Kill { worker, .. } | Self::Restart { worker, .. } => {
                *worker
            }
        }
    }
}

impl Weather {
    fn draw(rng: &mut StdRng) -> Self {
        if rng.random_bool(0.2) {
            return Self {
                bus_delay_ms_max: 0,
                event_loss: 0.0,
                route_loss: 0.0,
                link_delay_ms_max: 0,
                read_failure: 0.0,
            };
        }
        Self {
            bus_delay_ms_max: rng.random_range(0..60),
            event_loss: rng.random_range(0.0..0.3),
            route_loss: rng.random_range(0.0..0.05),
            link_delay_ms_max: rng.random_range(0..20),
            read_failure: rng.random_range(0.0..0.3),
        }
    }
}

fn disturbances(rng: &mut StdRng, workers: usize) -> Vec<Disturbance> {
    let mut all = Vec::new();
    for worker in 0..workers {
        for _ in 0..rng.random_range(0..=2) {
            all.push(Disturbance::Cut { at: milliseconds(rng, STORM_MS), worker });
        }
        if rng.random_bool(0.3) {
            let at = milliseconds(rng, STORM_MS);
            all.push(Disturbance::Kill { at, worker });
            all.push(Disturbance::Restart { at: at + milliseconds(rng, 1_500), worker });
        }
    }
    all.sort_by_key(Disturbance::at);
    all
}

fn milliseconds(rng: &mut StdRng, max: u64) -> Duration {
    Duration::from_millis(rng.random_range(1..max))
}

fn tokens(rng: &mut StdRng, count: std::ops::Range<usize>) -> Vec<u32> {
    (0..rng.random_range(count)).map(|_| rng.random_range(0..VOCABULARY as u32)).collect()
}
