//! What messages and connections suffer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_transfer::{LeaseError, TransferError, TransferFaults};
use messaging::{Faults, Link};
use parking_lot::Mutex;
use prost::Message;
use protocol::{WorkerLife, subjects, v1};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::plan::Weather;

/// A defect of the system under test, to see that the checks notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    None,
    /// A transfer flips a bit now and then.
    WrongByte,
    /// KV events lack a block now and then.
    LostBlock,
}

/// See the module's description. Clones are one world.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

struct State {
    rng: StdRng,
    weather: Weather,
    defect: Defect,
    is_stormy: bool,
    links: Vec<(String, CancellationToken)>,
}

impl World {
    /// A calm world.
    pub fn new(seed: u64, weather: Weather, defect: Defect) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed ^ 0x5107),
            weather,
            defect,
            is_stormy: false,
            links: Vec::new(),
        })))
    }

    /// From now on messages suffer.
    pub fn storm(&self) {
        self.0.lock().is_stormy = true;
    }

    /// From now on they do not.
    pub fn calm(&self) {
        self.0.lock().is_stormy = false;
    }

    /// Breaks all connections to an endpoint.
    pub fn cut(&self, endpoint: &str) {
        let mut state = self.0.lock();
        for (_, cut) in state.links.extract_if(.., |(other, _)| other == endpoint) {
            cut.cancel();
        }
    }
}

impl State {
    fn happens(&mut self, probability: f64) -> bool {
        self.is_stormy && self.rng.random_bool(probability)
    }

    fn delay(&mut self, ms_max: u64) -> Duration {
        let ms = if self.is_stormy { self.rng.random_range(0..=ms_max) } else { 0 };
        Duration::from_millis(ms)
    }
}

impl Faults for World {
    fn carry(&self, subject: &str, mut payload: Bytes) -> Vec<(Duration, Bytes)> {
        let mut state = self.0.lock();
        let Weather { event_loss, route_loss, bus_delay_ms_max, .. } = state.weather;
        let is_route = subject.starts_with("route");
        if state.happens(if is_route { route_loss } else { event_loss }) {
            return Vec::new();
        }
        if state.defect == Defect::LostBlock && subject == subjects::KV_EVENTS {
            let mut events = v1::KvEvents::decode(payload).unwrap();
            if state.happens(0.2) {
                events.stored = events.stored.split_off(events.stored.len().min(16));
            }
            payload = events.encode_to_vec().into();
        }
        let delay = state.delay(bus_delay_ms_max);
        // Now and then a message comes twice.
        if !is_route && state.happens(event_loss / 4.0) {
            return vec![(delay, payload.clone()), (2 * delay, payload)];
        }
        vec![(delay, payload)]
    }

    fn link(&self, endpoint: &str) -> Link {
        let cut = CancellationToken::new();
        self.0.lock().links.push((endpoint.to_string(), cut.clone()));
        let state = self.0.clone();
        let delay = Arc::new(move || {
            let mut state = state.lock();
            let ms_max = state.weather.link_delay_ms_max;
            state.delay(ms_max)
        });
        Link { delay, cut }
    }
}

impl TransferFaults for World {
    fn before_read(&self, _worker: &WorkerLife) -> Result<(), TransferError> {
        let mut state = self.0.lock();
        let probability = state.weather.read_failure;
        if state.happens(probability) {
            return Err(TransferError::Lease(LeaseError::Expired));
        }
        Ok(())
    }

    fn in_transit(&self, block: &mut [u8]) {
        let mut state = self.0.lock();
        if state.defect == Defect::WrongByte && state.happens(0.2) {
            let at = state.rng.random_range(0..block.len());
            block[at] ^= 1 << state.rng.random_range(0..8);
        }
    }
}
