//! What can go wrong, and when: a schedule that a seed decides.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a fault strikes. One of its kind, except where said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A process.
    PrefillWorker,
    /// A process.
    DecodeWorker,
    /// A process.
    Router,
    /// The one server; its partitions cut everyone from it.
    Nats,
    /// The connections on which KV blocks are read, to all workers.
    Kv,
}

/// How a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// SIGKILL, and a new process later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
    /// SIGTERM, and a new process when the old one has ended.
    Restart,
    /// A partition in which nothing arrives and nothing breaks, as when packets are dropped. What
    /// was sent meanwhile arrives when it is over, as TCP would send it again.
    Silence,
    /// A partition that resets every connection, new ones too, until it is over.
    Reset,
}

/// What is hit and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// What is hit.
    pub target: Target,
    /// How.
    pub way: Way,
}

/// One fault of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// Chooses among the processes that it may hit.
    pub draw: u32,
    /// From the strike to the healing.
    pub hold: Duration,
}

/// Faults that strike together, and when they may.
#[derive(Clone, Debug, PartialEq)]
pub struct Strike {
    /// One, or several at once.
    pub faults: Vec<Fault>,
    /// Only while KV blocks are on their way to a reader.
    pub during_pull: bool,
    /// How long the load runs before, at least.
    pub delay: Duration,
}

/// How long faults last before they heal, in milliseconds. A restart takes what it takes.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From a SIGKILL to the new process.
    pub kill_ms: Range<u64>,
    /// Of a stop or a silence: longer than the 2 s after which a silent worker counts as gone.
    pub silence_ms: Range<u64>,
    /// Of a partition that resets.
    pub reset_ms: Range<u64>,
    /// From the beginning of the load to the strike.
    pub delay_ms: Range<u64>,
}

impl Pace {
    /// For long runs.
    pub const USUAL: Self = Self {
        kill_ms: 200..1_500,
        silence_ms: 3_000..4_500,
        reset_ms: 500..2_000,
        delay_ms: 500..4_000,
    };
    /// For a run in which every kind strikes once.
    pub const SHORT: Self = Self {
        kill_ms: 200..500,
        silence_ms: 2_600..3_000,
        reset_ms: 300..600,
        delay_ms: 200..1_200,
    };
}

const TARGETS: [Target; 5] =
    [Target::PrefillWorker, Target::DecodeWorker, Target::Router, Target::Nats, Target::Kv];
const WAYS: [Way; 5] = [Way::Kill, Way::Stop, Way::Restart, Way::Silence, Way::Reset];

/// What may fail at once and still leave one of each kind, of 2 prefill workers, 3 decode workers
/// and 2 routers.
const PAIRS: [(Target, Target); 9] = [
    (Target::DecodeWorker, Target::DecodeWorker),
    (Target::DecodeWorker, Target::PrefillWorker),
    (Target::DecodeWorker, Target::Router),
    (Target::DecodeWorker, Target::Nats),
    (Target::DecodeWorker, Target::Kv),
    (Target::PrefillWorker, Target::Router),
    (Target::PrefillWorker, Target::Nats),
    (Target::PrefillWorker, Target::Kv),
    (Target::Router, Target::Nats),
];

impl Target {
    /// Whether it has an engine.
    pub fn is_worker(self) -> bool {
        matches!(self, Self::PrefillWorker | Self::DecodeWorker)
    }
}

impl Kind {
    /// Every kind there is: connections can be cut, but not killed.
    pub fn all() -> Vec<Self> {
        let every = TARGETS
            .iter()
            .flat_map(|target| WAYS.iter().map(|way| Self { target: *target, way: *way }));
        every.filter(Self::exists).collect()
    }

    fn exists(&self) -> bool {
        self.target != Target::Kv || self.way.is_partition()
    }

    /// A kind's fault, with what is open drawn.
    fn draw(self, random: &mut ChaCha8Rng, pace: &Pace) -> Fault {
        let hold_ms = match self.way {
            Way::Stop | Way::Silence => random.random_range(pace.silence_ms.clone()),
            Way::Reset => random.random_range(pace.reset_ms.clone()),
            Way::Kill => random.random_range(pace.kill_ms.clone()),
            Way::Restart => 0,
        };
        Fault { kind: self, draw: random.random(), hold: Duration::from_millis(hold_ms) }
    }
}

impl Pace {
    fn delay(&self, random: &mut ChaCha8Rng) -> Duration {
        Duration::from_millis(random.random_range(self.delay_ms.clone()))
    }
}

impl Way {
    /// Whether it is done to connections rather than to a process.
    pub fn is_partition(self) -> bool {
        matches!(self, Self::Silence | Self::Reset)
    }
}

/// `strikes` faults, one at a time: each of `kinds` as often as the others but for one, in random
/// order, every other one during a pull.
pub fn schedule(seed: u64, strikes: usize, kinds: &[Kind], pace: &Pace) -> Vec<Strike> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<Kind> = Vec::new();
    while order.len() < strikes && !kinds.is_empty() {
        let mut turn = kinds.to_vec();
        turn.shuffle(&mut random);
        order.extend(turn);
    }
    order.truncate(strikes);
    // The kind's second time is during a pull if its first was not.
    let during_pull =
        |index: usize| (index + index / kinds.len().max(1) * (1 + kinds.len() % 2)) % 2 == 1;
    let strike = |(index, kind): (usize, Kind)| Strike {
        delay: pace.delay(&mut random),
        faults: vec![kind.draw(&mut random, pace)],
        during_pull: during_pull(index),
    };
    order.into_iter().enumerate().map(strike).collect()
}

/// `strikes` pairs of faults that strike together and leave one of each kind.
pub fn overlapping_schedule(seed: u64, strikes: usize, pace: &Pace) -> Vec<Strike> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(1);
    let strike = |index: usize| {
        let (first, second) = PAIRS[index % PAIRS.len()];
        let mut fault = |target| {
            let kinds: Vec<Kind> =
                Kind::all().into_iter().filter(|kind| kind.target == target).collect();
            kinds.choose(&mut random).expect("every target has a kind").draw(&mut random, pace)
        };
        let faults = vec![fault(first), fault(second)];
        Strike { faults, during_pull: index % 2 == 1, delay: pace.delay(&mut random) }
    };
    (0..strikes).map(strike).collect()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PrefillWorker => "prefill worker",
            Self::DecodeWorker => "decode worker",
            Self::Router => "router",
            Self::Nats => "NATS",
            Self::Kv => "KV connections",
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Silence => "silence",
            Self::Reset => "reset",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.way)
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.faults.iter().map(|fault| fault.kind.to_string()).collect();
        f.write_str(&kinds.join(" + "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_seed_decides() {
        let kinds = Kind::all();
        assert_eq!(schedule(7, 50, &kinds, &Pace::USUAL), schedule(7, 50, &kinds, &Pace::USUAL));
        assert_ne!(schedule(7, 50, &kinds, &Pace::USUAL), schedule(8, 50, &kinds, &Pace::USUAL));
        assert_eq!(
            overlapping_schedule(7, 20, &Pace::USUAL),
            overlapping_schedule(7, 20, &Pace::USUAL)
        );
    }

    #[test]
    fn kinds_and_pulls_share_evenly() {
        #[track_caller]
        fn check(kinds: &[Kind], turns: usize) {
            let strikes = schedule(3, kinds.len() * turns, kinds, &Pace::USUAL);
            let mut counts = BTreeMap::new();
            for strike in &strikes {
                *counts.entry(strike.faults[0].kind).or_insert(0) += 1;
            }
            assert!(counts.values().all(|count| *count == turns), "{counts:?}");
            let pulls = strikes.iter().filter(|strike| strike.during_pull).count();
            assert_eq!(pulls, strikes.len() / 2);
        }
        let all = Kind::all();
        assert_eq!(all.len(), 22);
        check(&all, 2);
        check(&all, 4);
        check(&all[..3], 2);
        check(&all[..1], 4);
    }

    #[test]
    fn a_pair_never_takes_both_of_a_kind() {
        for strike in overlapping_schedule(1, 200, &Pace::SHORT) {
            let targets: Vec<Target> =
                strike.faults.iter().map(|fault| fault.kind.target).collect();
            assert!(
                targets[0] != targets[1] || targets[0] == Target::DecodeWorker,
                "{strike} would leave none"
            );
        }
    }
}
