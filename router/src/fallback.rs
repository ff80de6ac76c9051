//! What a gateway decides by while no router answers.

use messaging::Network;
use parking_lot::Mutex;
use protocol::{WorkerLife, subjects, v1};
use tokio::time::Instant;

use crate::core::Core;
use crate::feeds::News;
use crate::run::{apply_fact, begin_watch, decide, reply_of};
use crate::worker_table::Time;

/// All that a router knows, but for what prefix caches hold and what others gave away.
pub struct Fallback {
    core: Mutex<Core>,
    began: Instant,
}

impl Default for Fallback {
    fn default() -> Self {
        Self { core: Mutex::default(), began: Instant::now() }
    }
}

impl Fallback {
    /// Learns of workers, for as long as it is polled.
    pub async fn follow(&self, network: &Network) {
        let mut load = network.bus.subscribe(subjects::LOAD);
        let mut suspicions = network.bus.subscribe(subjects::SUSPECT);
        let mut workers = begin_watch(&network.registry, &mut self.core.lock(), self.now());
        loop {
            let fact = tokio::select! {
                biased;
                change = workers.next() => News::Worker(change),
                Some(message) = load.next() => News::Load(message),
                Some(message) = suspicions.next() => News::Suspicion(message),
            };
            if let News::Worker(None) = fact {
                workers = begin_watch(&network.registry, &mut self.core.lock(), self.now());
            }
            let _without_an_index = apply_fact(&mut self.core.lock(), fact, self.now());
        }
    }

    /// A change that this gateway learned by another way, and perhaps earlier.
    pub fn suspect(&self, worker: &WorkerLife) -> bool {
        self.core.lock().suspect(worker, self.now())
    }

    /// Answers as a router would.
    pub fn route(&self, asked: &v1::RouteRequest) -> v1::RouteReply {
        reply_of(&decide(&mut self.core.lock(), asked, self.now()), asked.explain)
    }

    fn now(&self) -> Time {
        self.began.elapsed().as_micros() as Time
    }
}
