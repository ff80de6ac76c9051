//! Where all requests of a run are counted: in a few tallies, so that requests which end at the
//! same time do not wait for each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::tally::Tally;

/// When a run begins, and what of it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub begin: Instant,
    /// Requests that begin before this only warm up.
    pub measured_from: Instant,
    /// No requests begin from here on.
    pub end: Instant,
    /// Running requests are waited for until here.
    pub drain_end: Instant,
}

impl Window {
    /// A run that begins now.
    pub fn from_now(warmup: Duration, duration: Duration, drain: Duration) -> Self {
        let begin = Instant::now();
        let end = begin + warmup + duration;
        Self { begin, measured_from: begin + warmup, end, drain_end: end + drain }
    }
}

/// Service level objectives: what makes a request a good one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Objectives {
    pub ttft_ms: Option<f64>,
    /// Of the mean over the request.
    pub itl_ms: Option<f64>,
}

/// The counts of a run.
pub struct Recorder {
    pub window: Window,
    pub objectives: Objectives,
    /// Set when requests are given up because the time to drain is over: how long they had waited
    /// is then a lower bound worth counting, which it is not after Ctrl-C.
    pub drain_is_over: AtomicBool,
    pub live: Live,
    tallies: Box<[Mutex<Tally>]>,
}

/// Counts for whoever watches the run, warm-up included.
#[derive(Default)]
pub struct Live {
    pub begun: AtomicU64,
    pub ended: AtomicU64,
    pub ok: AtomicU64,
    pub events: AtomicU64,
}

impl Live {
    /// Requests under way.
    pub fn running(&self) -> u64 {
        let ended = self.ended.load(Relaxed);
        self.begun.load(Relaxed).saturating_sub(ended)
    }
}

impl Recorder {
    /// Nothing counted yet.
    pub fn new(window: Window, objectives: Objectives) -> Self {
        let tallies = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            window,
            objectives,
            drain_is_over: AtomicBool::new(false),
            live: Live::default(),
            tallies: (0..tallies).map(|_| Mutex::default()).collect(),
        }
    }

    /// The tally of the request with this number.
    pub fn tally(&self, number: u64) -> MutexGuard<'_, Tally> {
        self.tallies[number as usize % self.tallies.len()].lock()
    }

    /// Counts an arrival that was not sent.
    pub fn drop_arrival(&self, due: Instant) {
        if due >= self.window.measured_from {
            self.tally(0).endings.dropped += 1;
        }
    }

    /// Everything together.
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.tallies.iter().for_each(|tally| total.add(&tally.lock()));
        total
    }
}
